"""One pass over a loader: predict, decide by every rule, measure.

The trainer's validation and test.py call this same function, so that a score
of the log and a score of the test are the same number.
"""
from collections.abc import Callable

import torch
from tqdm import tqdm

from utils.decision import RULES, Decision, build_decision, rule_of
from utils.distributed import all_reduce_, is_main, rank, world_size
from utils.errors import ConfigError
from utils.metrics import BoundaryMetrics, DatasetMetrics, ImageMetrics, count_pixels
from utils.predictor import Predictor
from utils.segfix_refiner import refined

REFINED = "_segfix"        # what the name of a rule ends with whose labels were refined


def build_rules(names: str, activation: str, options: dict,
                model: torch.nn.Module | None = None) -> list[Decision]:
    """The decision rules in "max,T" or "all", each once; `options` is the `predict` section.

    model: the network, which may have a rule of its own (see utils.decision.rule_of).
    """
    own = rule_of(model, "max")
    if own != "max":
        if names not in ("max", own):
            raise ConfigError(f"{type(model).__name__} predicts no classes that {names} could "
                              "decide on", "predict", "leave the rule out")
        names = own
    names = RULES if names == "all" else names.split(",")
    return [build_decision(name.strip(), activation, options) for name in dict.fromkeys(names)]


def evaluate(predictor, loader, decisions: list, *, num_classes: int, ignore_index: int,
             classes_of_interest: list[int] | str | None = None, loss: Callable | None = None,
             device: torch.device | str, progress: str | None = None, published: bool = False,
             boundary: bool = False, on_batch: Callable | None = None,
             refiner: Callable | None = None) -> dict[str, dict]:
    """The scores of every decision rule over the whole loader, from one forward per image.

    predictor: uint8 (N, 3, H, W) on `device` -> logits (N, C, H, W).
    loader: batches {"image", "label", "id"}; lists of tensors where sizes differ.
        In a process group rank r holds batches r, r + world, ... of the order
        that a single process would see.
    decisions: rules from utils.decision, at least one; names must differ.
    loss: (logits float32, label int64) -> scalar, taken on the same logits.
    progress: text before a bar on stderr; no bar where stderr is no terminal.
    published: image-level scores as the RankDice code computes them (see ImageMetrics).
    boundary: also boundary IoU and boundary F, which read every prediction back to the CPU.
    on_batch: called as on_batch(ids, images, labels, {rule: prediction}) after
        each forward, for pictures; it gets tensors on the device.
    refiner: of utils.segfix_refiner; the predictions of every rule are also judged
        refined, under the name of the rule with "_segfix" behind it.

    returns: rule name -> results. Dataset-level numbers keep their names
        (Mean_IoU, Class_IoU, ..., confusion); image-level ones are under
        "mIoU_I", "mDice_I" and, all of them, under "image" (its img_index holds
        positions in the loader's order). "images" counts the images and "loss"
        is the mean over images. Every number is the same for any number of
        ranks, to the last bit.

    Nothing is read from the device before the last batch, boundary scores and refined labels
    aside.
    """
    device = torch.device(device)
    names = [decision.name for decision in decisions]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"decisions must be at least one and all different, got {names}")
    if refiner is not None:
        names = [each for name in names for each in (name, name + REFINED)]
    scores = {name: (DatasetMetrics(num_classes, ignore_index, classes_of_interest),
                     ImageMetrics(num_classes, ignore_index, classes_of_interest,
                                  published=published))
              for name in names}
    outlines = {name: BoundaryMetrics(num_classes, ignore_index, classes_of_interest)
                for name in names if boundary}
    if loss is None and names == ["max"] and isinstance(predictor, Predictor):
        predictor, decisions = _labels_alone(predictor, decisions[0])
    losses, sizes = [], []
    bar = tqdm(loader, desc=progress, total=len(loader), leave=False, dynamic_ncols=True,
               disable=None if progress and is_main() else True)
    with torch.inference_mode():
        for number, batch in enumerate(bar):
            total = torch.zeros((), device=device)
            first = (rank() + number * world_size()) * loader.batch_size
            for members, images, labels in _groups_of_equal_size(batch):
                ids = [batch["id"][i] for i in members]
                index = [first + i for i in members]
                images = images.to(device, non_blocking=True)
                labels = labels.to(device, non_blocking=True)
                # Softmax over scattered channels takes twice a copy and softmax.
                logits = predictor(images).contiguous()
                predictions = {}
                for name, prediction in _predictions(decisions, logits, refiner, images, ids):
                    counts = count_pixels(prediction, labels, num_classes, ignore_index)
                    for metrics in scores[name]:
                        metrics.add(counts, index)
                    if boundary:
                        outlines[name].update(prediction, labels)
                    if on_batch:
                        predictions[name] = prediction
                if loss is not None:
                    total += loss(logits, labels.long()) * len(ids)
                if on_batch:
                    on_batch(ids, images, labels, predictions)
            losses.append(total)
            sizes.append(len(batch["id"]))
    images, mean_loss = _over_ranks(sizes, losses, device)
    results = {}
    for name, (dataset, image) in scores.items():
        dataset.reduce()
        image.reduce()
        per_image = image.compute()
        results[name] = {**dataset.compute(), "mIoU_I": per_image["Mean_IoU"],
                         "mDice_I": per_image["Mean_Dice"], "image": per_image, "images": images}
        if boundary:
            outlines[name].reduce()
            results[name] |= outlines[name].compute()
        if loss is not None:
            results[name]["loss"] = mean_loss
    return results


def _predictions(decisions, logits, refiner, images, ids):
    """(name, prediction) of every rule, and of every rule refined."""
    size = tuple(logits.shape[-2:])
    moves = [refiner.movement(image, name, size) for image, name in zip(images, ids, strict=True)
             ] if refiner is not None else []
    for decision in decisions:
        prediction = decision(logits)
        yield decision.name, prediction
        if moves:
            yield decision.name + REFINED, torch.stack(
                [refined(*one) for one in zip(prediction, moves, strict=True)])


def _labels_alone(predictor, rule):
    """A predictor of labels and a rule that keeps them: nothing asks for the logits themselves."""
    def decided(labels):
        return labels
    decided.name = rule.name
    return (lambda images: predictor.labels(images, rule)), [decided]


def _groups_of_equal_size(batch):
    """A batch as (positions, images (N, 3, H, W), labels (N, H, W)), one for each image size."""
    images, labels = batch["image"], batch["label"]
    if isinstance(images, torch.Tensor):
        return [(range(len(images)), images, labels)]
    groups = {}
    for index, image in enumerate(images):
        groups.setdefault(image.shape, []).append(index)
    return [(members, torch.stack([images[i] for i in members]),
             torch.stack([labels[i] for i in members])) for members in groups.values()]


def _over_ranks(sizes, losses, device):
    """(number of images, mean loss over images) of all ranks.

    Floating-point sums depend on their order, so every rank first puts its
    batches where a single process would have had them.
    """
    batches = int(all_reduce_(torch.tensor(len(sizes), device=device)).item())
    if not batches:
        return 0, float("nan")
    table = torch.zeros(2, batches, dtype=torch.float64, device=device)
    if sizes:
        mine = slice(rank(), None, world_size())
        table[0, mine] = torch.tensor(sizes, dtype=torch.float64, device=device)
        table[1, mine] = torch.stack(losses).double()
    count, total = all_reduce_(table).cpu().sum(1).tolist()
    return int(count), total / count
