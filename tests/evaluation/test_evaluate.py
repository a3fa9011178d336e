"""Evaluation: one pass scores every rule, with the same numbers for any batches and ranks."""
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.layers.resize import resize_to
from tests.support.ranks import free_port
from utils.decision.posterior import Posterior
from utils.decision.rules import build_decision
from utils.evaluation.evaluate import evaluate
from utils.evaluation.regret import Regret
from utils.metrics import DatasetMetrics, ImageMetrics, Scores
from utils.predict.predictor import Predictor
from utils.segfix.refiner import Refiner

CLASSES = 4


class FakeLoader:
    """The batches of one process out of several, distributed as the real loader does."""

    def __init__(self, images, labels, batch_size, rank=0, world=1):
        self.batch_size = batch_size
        starts = range(0, len(images), batch_size)[rank::world]
        self.batches = [self._batch(images, labels, s, min(s + batch_size, len(images)))
                        for s in starts]

    @staticmethod
    def _batch(images, labels, first, last):
        image, label = images[first:last], labels[first:last]
        if len({i.shape for i in image}) == 1:
            image, label = torch.stack(image), torch.stack(label)
        return {"image": image, "label": label, "id": [str(i) for i in range(first, last)]}

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def predictor(image):
    """Logits (N, 4, H, W) that depend on the image, without a network."""
    x = image.float() / 255
    return torch.cat((x, x.mean(1, keepdim=True) * 1.1), 1)


def cross_entropy(logits, label):
    return F.cross_entropy(logits, label, ignore_index=255)


def material(sizes):
    g = torch.Generator().manual_seed(3)
    images = [torch.randint(0, 256, (3, *s), dtype=torch.uint8, generator=g) for s in sizes]
    labels = [torch.randint(0, CLASSES, s, dtype=torch.uint8, generator=g) for s in sizes]
    for label in labels:
        label[0] = 255
    return images, labels


def scores(sizes, batch_size, rules=("max",), rank=0, world=1, **options):
    loader = FakeLoader(*material(sizes), batch_size, rank, world)
    return evaluate(predictor, loader, [build_decision(r) for r in rules], num_classes=CLASSES,
                    ignore_index=255, device="cpu", **options)


def test_scores_are_those_of_the_metrics_on_all_images_at_once():
    images, labels = material([(9, 7)] * 5)
    prediction, target = predictor(torch.stack(images)).argmax(1), torch.stack(labels)
    dataset, image = DatasetMetrics(CLASSES), ImageMetrics(CLASSES)
    dataset.update(prediction, target)
    image.update(prediction, target)
    got = scores([(9, 7)] * 5, 2)["max"]
    assert got == Scores(dataset.compute(), image.compute(), images=5)


def test_images_of_different_sizes_share_a_batch():
    sizes = [(9, 7), (5, 5), (9, 7), (1, 6), (5, 5)]
    together, alone = scores(sizes, 4)["max"], scores(sizes, 1)["max"]
    assert together.dataset["confusion"] == alone.dataset["confusion"]
    assert together.image["img_miou"] == alone.image["img_miou"]


class EndsInResize(torch.nn.Module):
    """The logits of `predictor`, at a quarter of the image's size and resized to it."""

    def forward(self, x):
        return resize_to(predictor(F.avg_pool2d(x, 4) * 255), x)


def test_one_rule_without_a_loss_is_scored_without_logits_at_the_image_size(monkeypatch):
    whole = Predictor(EndsInResize().eval(), lambda x: x.float() / 255)
    loader = FakeLoader(*material([(90, 80)] * 3), 2)
    options = dict(num_classes=CLASSES, ignore_index=255, device="cpu")
    expected = evaluate(lambda image: whole(image), loader, [build_decision("max")], **options)
    monkeypatch.setattr(Predictor, "__call__", None)
    got = evaluate(whole, loader, [build_decision("max")], **options)
    assert got["max"].dataset["confusion"] == expected["max"].dataset["confusion"]
    assert got["max"].numbers()["Mean_IoU"] > 0


def test_several_rules_take_one_forward_per_batch():
    calls = []
    loader = FakeLoader(*material([(6, 6)] * 4), 2)

    def counted(image):
        calls.append(len(image))
        return predictor(image)

    got = evaluate(counted, loader, [build_decision("max"), build_decision("T")],
                   num_classes=CLASSES, ignore_index=255, device="cpu")
    assert calls == [2, 2]
    assert got.keys() == {"max", "T"}
    assert got["T"].dataset["confusion"] is None
    assert got["max"].dataset["confusion"] is not None


def test_offsets_are_computed_once_for_all_rules():
    names = []

    def zero_offsets(image, name, size):
        names.append(name)
        return np.zeros((*size, 2), np.int8)

    zero_offsets.needs_image = False
    got = scores([(12, 16)] * 3, 2, ("max", "rankdice"), refiner=Refiner(zero_offsets))
    assert names == ["0", "1", "2"]
    assert list(got) == ["max", "max_segfix", "rankdice", "rankdice_segfix"]
    assert got["rankdice_segfix"].dataset["Mean_Dice"] == got["rankdice"].dataset["Mean_Dice"]


def test_the_loss_is_the_mean_over_images():
    images, labels = material([(8, 8)] * 5)
    parts = [cross_entropy(predictor(i[None]), t[None].long()).item()
             for i, t in zip(images, labels, strict=True)]
    assert scores([(8, 8)] * 5, 1, loss=cross_entropy)["max"].loss == pytest.approx(
        sum(parts) / 5, rel=1e-6)


def test_without_a_loss_none_is_reported():
    got = scores([(4, 4)], 1)["max"]
    assert got.loss is None and "loss" not in got.numbers()


def test_an_empty_loader_gives_nan_and_no_images():
    got = scores([], 2, loss=cross_entropy)["max"]
    assert got.images == 0 and math.isnan(got.dataset["Mean_IoU"]) and math.isnan(got.loss)


def test_two_rules_with_one_name_are_an_error():
    with pytest.raises(ValueError, match="different"):
        scores([(4, 4)], 1, rules=("max", "max"))


SIZES = [(9, 7), (9, 7), (5, 5), (9, 7), (1, 6), (5, 5), (8, 8)]


def as_text(results):
    return json.dumps({rule: dataclasses.asdict(scored) for rule, scored in results.items()})


def all_numbers(**place):
    regret = Regret(Posterior(), CLASSES)
    text = as_text(scores(SIZES, 2, rules=("max", "T"), loss=cross_entropy, regret=regret, **place))
    return text + json.dumps(regret.compute(["max", "T"]))


def _one_rank(rank, world, port, folder):
    import torch.distributed as dist
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank,
                            world_size=world)
    (folder / f"{rank}.json").write_text(all_numbers(rank=rank, world=world))
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks_gives_the_same_numbers_to_the_last_bit(world, tmp_path):
    import torch.multiprocessing as mp
    alone = all_numbers()
    mp.start_processes(_one_rank, (world, free_port(), tmp_path), nprocs=world, start_method="fork")
    for rank in range(world):
        assert (tmp_path / f"{rank}.json").read_text() == alone
