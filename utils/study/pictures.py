"""Predicts the images that the report of a study shows, and counts FLOPs, in a process per run.

Shown are the images on which the runs differ most (by the spread of mIoU_I), and the worst images
of each run. The pictures stay in the folder of the result, so a second report opens no network.
"""
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.cli.console import notice, warn
from utils.errors import listed, shown
from utils.evaluation.html_page import data_url, small_picture
from utils.evaluation.results_file import OUTCOMES
from utils.files.json_values import plain_json
from utils.study.execute import CPU, last_error, run_program
from utils.study.results import COSTS, RunResult, read_costs

DIFFERING, WORST = 4, 2     # images of a data set, and of a run
_WIDTH = 288                # pixels of a picture in the report
_FOLDER = "pictures"

Shown = dict[str, Any]      # {"differing": [...], "worst": [...]}, see `picture_results`


def picture_results(results: Sequence[RunResult], device: str, folder: Path) -> Shown:
    """Make the missing pictures, and those older than their result; set `costs` of the results.

    device: to predict on. folder: of the study, for the log of the processes.
    Returns {"differing": [{"data", "id", "image", "label", "runs": [{"name", "score",
    "picture"}]}], "worst": [{"name", "images": [{"id", "score", "image", "label", "picture"}]}],
    "classes": {data: [[name, [r, g, b]], ...]}}; pictures are data URLs, None where one could not
    be made.
    """
    usable = [result for result in results if result.images is not None
              and result.folder is not None and _checkpoint(result)]
    without = [_title(result) for result in results if result not in usable]
    if without:
        notice(f"the report shows no pictures of {listed(without, 4, '; ')}: no checkpoint, or no "
               "scores of images")
    chosen = {data: _differing([one for one in usable if _data(one) == data])
              for data in dict.fromkeys(map(_data, usable))}
    for number, result in enumerate(usable, start=1):
        ids = list(dict.fromkeys([*chosen[_data(result)], *_worst(result)]))
        _make(result, ids, device, folder, f"{number} of {len(usable)}")
    differing = [{"data": data[0], "id": name, **_truth(usable, data[0], name), "runs": [
        {"name": _title(one), "score": _score(one, name), "picture": _url(_path(one, name, "png"))}
        for one in usable if _data(one) == data]} for data, names in chosen.items()
        for name in names]
    worst = [{"name": _title(one), "images": [
        {"id": name, "score": _score(one, name), **_truth([one], one.cell.data, name),
         "picture": _url(_path(one, name, "png"))} for name in _worst(one)]} for one in usable]
    return {"differing": differing, "worst": worst, "classes": {
        one.cell.data: one.costs["classes"] for one in usable if one.costs.get("classes")}}


def picture_process(job: dict, split_loader: Callable[..., Any],
                    test_arguments: Callable[[list[str]], Any]):
    """The content of the process: predict the images of one result.

    job: {"checkpoint", "test": arguments of test.py, "entry": of the result if there are none,
    "ids": image -> its mIoU_I, "folder", "device"}. split_loader: of dataloader.loader.
    Raises DataError if a prediction does not have the score of the result: it shows something else.
    """
    import torch

    from utils.checkpoint.read import read_checkpoint
    from utils.config.load import with_config
    from utils.evaluation.evaluate import REFINED, build_rules
    from utils.evaluation.model_costs import flop_counter
    from utils.evaluation.repeat_result import options_of, require_score
    from utils.files.whole_file import write_bytes
    from utils.predict.arguments import with_arguments
    from utils.predict.open_model import open_model
    from utils.predict.predictor import build_predictor
    from utils.segfix.refiner import open_refiner
    args, device = test_arguments(job["test"]), job["device"]
    checkpoint = with_config(read_checkpoint(job["checkpoint"]), args.config, args.overrides)
    config = checkpoint["config"]
    if job["entry"]:
        options = options_of(job["entry"], config, args)
    else:
        options = with_arguments(config["predict"], args)
    opened = open_model(checkpoint, device, job["checkpoint"])
    _, section, loader = split_loader(config, args.split, own_size=not args.as_validation)
    predictor = opened.predictor(options, section) if not args.as_validation else build_predictor(
        opened.model, opened.normalize, options, opened.activation)
    names = args.predict or options["test"]
    rule = build_rules(names.removesuffix(REFINED), opened.activation, options, opened.model,
                       opened.inverse)[0]
    refiner = open_refiner(args.segfix, args.segfix_scale, device) if args.segfix else None
    index = {sample.id: i for i, sample in enumerate(loader.dataset.samples)}
    place = Path(job["folder"])
    (place / _FOLDER).mkdir(exist_ok=True)
    flops = size = None
    for name, score in job["ids"].items():
        sample = loader.dataset[index[name]]
        images = sample["image"][None].to(device)
        with torch.inference_mode(), flop_counter() as counter:
            scored, labels = _decided(predictor, images, rule)
        if flops is None:
            flops, size = counter.get_total_flops(), list(images.shape[2:])
        if predictor.for_files() is not predictor:      # scored at another size than the image's
            labels = predictor.labels(images, rule)
        scored, labels = scored[0].cpu(), labels[0].cpu()
        if refiner is not None:
            scored, labels = (refiner(one, images[0], name) for one in (scored, labels))
        require_score(scored, predictor.as_scored(sample["label"][None])[0], score,
                      len(opened.class_names), config, options, name)
        sample["image"] = opened.normalize.shown(sample["image"])
        _write(place / _FOLDER, name, sample, labels.numpy(), loader.dataset.palette)
    classes = list(zip(loader.dataset.class_names, loader.dataset.palette, strict=False))
    costs = {"parameters": sum(one.numel() for one in opened.model.parameters()),
             "flops": flops, "size": size, "classes": plain_json(classes)}
    write_bytes(place / COSTS, json.dumps(costs).encode())


def _decided(predictor, images, rule):
    """(the labels or masks that are scored, the label map of these)."""
    if not rule.masks:
        labels = predictor.decide(images, rule)
        return labels, labels
    logits = predictor(images).contiguous()
    masks = rule(logits)
    return masks, rule.label_map(logits, masks)


def _differing(results: list[RunResult]) -> list[str]:
    """The images whose mIoU_I differs most between runs, the largest spread first."""
    if len(results) < 2:
        return []
    columns = [_by_image(result) for result in results]
    common = set(columns[0]).intersection(*columns[1:])
    spread = {name: float(np.std([column[name] for column in columns])) for name in common}
    return sorted(spread, key=lambda name: (-spread[name], name))[:DIFFERING]


def _worst(result: RunResult) -> list[str]:
    scores = _by_image(result)
    return sorted(scores, key=lambda name: (scores[name], name))[:WORST]


def _by_image(result: RunResult) -> dict[str, float]:
    """image -> mIoU_I, where it is defined."""
    assert result.images is not None
    return {name: float(value) for name, value in
            zip(result.images.ids, result.images.image[:, 0], strict=True) if value == value}


def _score(result, name):
    return _by_image(result).get(name)


def _data(result: RunResult) -> tuple[str, str]:
    """Equal for results of the same images: the data set and the fold."""
    return result.cell.data, result.fold


def _title(result: RunResult) -> str:
    seed = "" if result.seed is None else f", seed {result.seed}"
    fold = f", fold {result.fold}" if result.fold else ""
    return f"{result.cell.title}{seed}{fold}"


def _checkpoint(result: RunResult) -> Path | None:
    """The checkpoint that was scored, if it is still there."""
    name = Path(str((result.entry.get("checkpoint") or {}).get("path", ""))).name
    path = result.folder / name if result.folder and name else None
    return path if path and path.is_file() else None


def _make(result, ids, device, folder, progress):
    """Start the process of a result if a picture or the costs are missing."""
    files = [result.place.parent / COSTS,
             *(_path(result, name, suffix) for name in ids for suffix in _SUFFIXES)]
    there = all(_is_newer(path, result.place) for path in files) and read_costs(result.place.parent)
    if ids and not there:
        notice(f"pictures of {_title(result)} ({progress})")
        scores = _by_image(result)
        entry = None if result.cell.config else {
            key: value for key, value in result.entry.items() if key not in OUTCOMES}
        job = {"checkpoint": str(_checkpoint(result)), "test": list(result.cell.test),
               "entry": entry, "ids": {name: scores[name] for name in ids},
               "folder": str(result.place.parent), "device": CPU if device == CPU else "cuda"}
        log = folder / "pictures.log"
        status, start = run_program(
            [sys.executable, "-m", "tools.study", "--pictures", json.dumps(job)], log, [device])
        if status:
            for path in files[1:]:      # older ones would show another prediction
                path.unlink(missing_ok=True)
            warn(f"no pictures of {_title(result)}: {last_error(log, start, status)}; all of it: "
                 f"{shown(log)}")
    result.costs = read_costs(result.place.parent)


def _is_newer(path: Path, than: Path) -> bool:
    return path.is_file() and path.stat().st_mtime >= than.stat().st_mtime


_SUFFIXES = ("png", "label.png", "jpg")     # prediction, label, image


def _path(result: RunResult, name: str, suffix: str) -> Path:
    """The file of a picture; names of images may hold any characters."""
    return result.place.parent / _FOLDER / f"{_file_name(name)}.{suffix}"


def _file_name(name):
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _truth(results, data, name) -> dict[str, str | None]:
    """The image and its label, from any result that has them."""
    for result in results:
        if result.cell.data == data and _path(result, name, "jpg").is_file():
            return {"image": _url(_path(result, name, "jpg")),
                    "label": _url(_path(result, name, "label.png"))}
    return {"image": None, "label": None}


def _url(path: Path) -> str | None:
    if not path.is_file():
        return None
    kind = "jpeg" if path.suffix == ".jpg" else "png"
    return data_url(path.read_bytes(), kind)


def _write(folder: Path, name: str, sample: dict, labels: np.ndarray, palette: Any):
    """Write prediction, label and image, reduced to the width of the report."""
    from utils.files.whole_file import write_bytes
    from utils.images.palette import colorize
    image = np.asarray(sample["image"]).transpose(1, 2, 0)
    truth = np.asarray(sample["label"])
    pictures = {"jpg": image, "label.png": colorize(truth, palette),
                "png": colorize(labels, palette)}
    for suffix, picture in pictures.items():
        write_bytes(folder / f"{_file_name(name)}.{suffix}",
                    small_picture(picture, _WIDTH, photo=suffix == "jpg"))
