"""Predicts images of a result once more, as results.json says it was measured."""
import argparse
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from utils.checkpoint.read import file_digest, read_checkpoint, settled
from utils.errors import DataError, listed, shown
from utils.evaluation.evaluate import build_rules, evaluate
from utils.evaluation.result_page import RuleResult, ShownImages
from utils.evaluation.results_file import Entry, same_but_for_the_rule
from utils.evaluation.worst_and_best import MOST, WorstAndBest
from utils.images.input_size import InputSize
from utils.metrics import ImageMetrics, count_pixels
from utils.predict.open_model import open_model
from utils.predict.predictor import Predictor, build_predictor

TOLERANCE = 0.02        # of mIoU_I: on another device a few pixels change
_AGAIN = "score the checkpoint again with test.py"


def options_of(entry: Entry, config: dict, args: Any) -> dict:
    """The `predict` section of a result of test.py; sets data and split of `config` and `args`.

    What an entry does not name was not in use: the usual value, not that of the config.
    """
    if entry.get("segfix"):
        raise DataError("the result was refined by SegFix, and does not say with which file")
    key = str(entry["loader"])
    config[key], args.split = entry["data"], key.removesuffix("_loader")
    args.predict, args.as_validation = entry["procedure"], bool(entry.get("labels_resized_to"))
    usual = {name: one.default for cls in (InputSize, Predictor)
             for name, one in inspect.signature(cls).parameters.items()}
    usual = {name: value for name, value in usual.items() if name in config["predict"]}
    options = {**config["predict"], **usual, "base_size": None, "published": False,
               "temperature": 1.0, "scale": None, "bias": None}
    options |= {name: value for name, value in entry.items() if name in options}
    return {**options, "CoI": entry.get("classes_of_interest", "all"),
            "posterior": "auto" if "posterior" in entry else "raw"}


def require_score(prediction: torch.Tensor, target: torch.Tensor, score: float, classes: int,
                  config: dict, options: dict, name: str):
    """Raise DataError unless labels (H, W) or masks (C, H, W) have the score of their image."""
    ignore = config["ignore_index"]
    metrics = ImageMetrics(classes, ignore, options["CoI"], published=options["published"])
    metrics.add(count_pixels(prediction[None], target[None], classes, ignore))
    _require_close(metrics.compute()["img_miou"][0], score, name)


def _require_close(found, score, name):
    if not abs(found - score) <= TOLERANCE:
        raise DataError(f"predicted as for the report, {shown(name)} has mIoU_I "
                        f"{100 * found:.1f}, and the result says {100 * score:.1f}", fix=_AGAIN)


def pictures_again(results: Sequence[RuleResult], path: Path, device: str | torch.device,
                   split_loader: Callable[..., Any]) -> ShownImages:
    """The worst and the best images of a results file, predicted once more.

    results: as the page shows them; the first one chooses the images, and those that differ in
    nothing but the rule are drawn too. path: of the file. split_loader: of dataloader.loader.
    Raises DataError if checkpoint or data are gone or have changed.
    """
    first = results[0]
    if first.images is None or not first.images.ids:
        raise DataError(f"there are no pictures without the scores of images: {first.missing}",
                        shown(path), _AGAIN)
    checkpoint, place = _checkpoint(first.entry, path)
    config = checkpoint["config"]
    drawn, left_out = _to_draw([one.entry for one in results])
    args = argparse.Namespace()
    try:
        options = {id(entry): options_of(entry, config, args) for entry in drawn}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the result does not say how it was measured: {error!r}", shown(path),
                        _AGAIN) from None
    opened = open_model(checkpoint, device, place)
    _, section, loader = split_loader(config, args.split, own_size=not args.as_validation)
    data, ignore = loader.dataset, config["ignore_index"]
    opened.require_data(data)
    own = options[id(drawn[0])]
    predictor = opened.predictor(own, section) if not args.as_validation else build_predictor(
        opened.model, opened.normalize, own, opened.activation)
    rules = [build_rules(str(entry["procedure"]), opened.activation, options[id(entry)],
                         opened.model, opened.inverse)[0] for entry in drawn]
    scores = {name: score for name, score in
              zip(first.images.ids, first.images.image[:, 0].tolist(), strict=True)
              if score == score}
    order = sorted(scores, key=lambda name: scores[name])
    chosen = dict.fromkeys([*order[:MOST], *order[-MOST:]])
    kept = WorstAndBest(data.palette, len(opened.class_names), ignore, own["CoI"],
                        own["published"], shown=opened.normalize.shown)
    evaluate(predictor, _Chosen(data, chosen, path), rules, num_classes=len(opened.class_names),
             ignore_index=ignore, classes_of_interest=own["CoI"], published=own["published"],
             device=opened.device, progress="pictures", kept=kept)
    worst, best = kept.gather()
    for one in (*worst, *best):
        _require_close(one.score, scores[shown(one.id)], one.id)
    about = kept.about(len(worst), len(best)) + " They were predicted again for this page."
    if left_out:
        about += f" Not predicted again: {listed(left_out, 8)}."
    return ShownImages(worst, best, [*zip(data.class_names, data.palette, strict=False)], about)


def _to_draw(entries: list[Entry]) -> tuple[list[Entry], list[str]]:
    """The entries whose predictions are drawn, the first of all among them; rules of the others."""
    if entries[0].get("segfix"):
        options_of(entries[0], {}, None)        # says why
    drawn, left_out = [], []
    for entry in entries:
        fits = (same_but_for_the_rule(entry, entries[0]) and not entry.get("segfix")
                and all(entry["procedure"] != one["procedure"] for one in drawn))
        (drawn if fits else left_out).append(entry)
    return drawn, [shown(entry.get("procedure")) for entry in left_out]


def _checkpoint(entry, path):
    """(checkpoint, its path) of an entry: where it says, or beside the results file."""
    if isinstance(entry.get("ensemble"), list):
        raise DataError("the pictures of an ensemble are not predicted again", shown(path),
                        "test.py --report writes a page with them; or leave --pictures out")
    part = entry.get("checkpoint")
    name = part.get("path") if isinstance(part, dict) else None
    if not isinstance(name, str):
        raise DataError("there are no pictures without a checkpoint, and the result names none",
                        shown(path), "leave --pictures out")
    places = [place for place in (Path(name), path.parent / Path(name).name) if place.is_file()]
    if not places:
        raise DataError(f"the checkpoint of the result is gone: {shown(name)}", shown(path),
                        "put it beside the results file, or leave --pictures out")
    for place in places:
        # No other file is opened: one of the same name may lie there that is no checkpoint.
        if settled(place, file_digest) == part.get("sha256"):
            return read_checkpoint(place), place
    raise DataError("the checkpoint is not the one that the result was measured with (sha256)",
                    shown(places[0]), _AGAIN)


class _Chosen:
    """A loader of some images of a dataset, one by one. names: as files of image scores have them.

    Raises DataError if the dataset lacks one of them.
    """

    batch_size = 1

    def __init__(self, dataset: Any, names: Sequence[str] | dict[str, None], path: Path):
        index = {shown(sample.id): k for k, sample in enumerate(dataset.samples)}
        missing = [name for name in names if name not in index]
        if missing:
            raise DataError(f"the data has no image {shown(missing[0])}, which the result has",
                            shown(path), _AGAIN)
        self.dataset, self.places = dataset, sorted(index[name] for name in names)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[dict]:
        for place in self.places:
            sample = self.dataset[place]
            yield {key: [sample[key]] for key in ("image", "label", "id")}
