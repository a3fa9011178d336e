"""The README.md of a published network, as the Hugging Face Hub shows it: a model card.

Front matter in YAML says what the network is, on which data, with which scores and license. Below
it people read the same, how the scores were taken, and how to use the files. What the program
cannot know is marked with FILL_IN. Keys of the front matter: huggingface.co/docs/hub/model-cards.
"""
import json
from collections.abc import Mapping, Sequence
from typing import Any

from utils.errors import counted
from utils.evaluation.results_file import Entry, data_of, protocol_of, title_of
from utils.images.bands import bands_of_state
from utils.metrics.table import bounds_text, percent

FILL_IN = "**FILL IN**"
_OF_PROBABILITIES = {
    "softmax": "Logits become probabilities by softmax",
    "sigmoid": "Logits become probabilities by sigmoid",
    "scores": "The output are scores, not logits: divided by their sum over the classes they are "
              "probabilities"}
_METRICS = (("Mean_IoU", "mean_iou", "mean IoU"), ("mIoU_I", "mean_iou_per_image", "mIoU_I"),
            ("Pixel_Accuracy", "accuracy", "pixel accuracy"))


def model_card(checkpoint: Mapping[str, Any], entries: Sequence[Entry], *, name: str,
               license_id: str | None, files: Mapping[str, str], changes: Sequence[str],
               scored_at: str | None) -> str:
    """The text of the card.

    checkpoint: the published one. entries: its results, may be empty. files: name -> what it is.
    changes: what differs in the config from that of the training. scored_at: the size at which
    validation saw images, as text; None: their own.
    """
    config = checkpoint["config"]
    parts = [_front(config, entries, name, license_id), f"# {_text(name)}", _about(checkpoint),
             "## Scores", _scores(entries, checkpoint), "## Use", _use(config, scored_at),
             "## Input and classes", _input(checkpoint, scored_at),
             "## Training", _training(checkpoint, changes), "## Files",
             "\n".join(f"* `{file}`: {text}" for file, text in files.items()),
             "## License, data and limits",
             f"* License of the weights: {license_id or FILL_IN} (in the front matter too)\n"
             f"* License of the training data, and where to get it: {FILL_IN}\n"
             f"* Made by, contact, citation: {FILL_IN}\n"
             f"* Meant for, and not for (places, cameras, groups of people it was not tried on): "
             f"{FILL_IN}"]
    return "\n\n".join(parts) + "\n"


def _front(config, entries, name, license_id):
    arch, data = config["arch"], config["train_loader"]["type"]
    tags = ["segwright", "pytorch", "semantic-segmentation", str(arch["type"]).lower()]
    lines = ["---", "library_name: segwright", "pipeline_tag: image-segmentation",
             f"license: {license_id}" if license_id else
             "license: unknown  # FILL IN: an identifier of huggingface.co/docs/hub/repositories"
             "-licenses",
             "tags:", *(f"- {_yaml(tag)}" for tag in tags), "datasets:", f"- {_yaml(data)}"]
    if entries:
        lines += ["metrics:", *(f"- {kind}" for _, kind, _ in _METRICS)]
        lines += ["model-index:", f"- name: {_yaml(name)}", "  results:"]
    for entry in entries:
        lines += ["  - task:", "      type: image-segmentation", "    dataset:",
                  f"      name: {_yaml(data_of(entry))}",
                  f"      type: {_yaml(entry.get('dataset'))}",
                  f"      split: {_yaml(entry.get('split'))}",
                  "    metrics:"]
        for key, kind, text in _METRICS:
            if isinstance(entry.get(key), (int, float)):
                rule = f"{text}, rule {entry.get('procedure')}"
                lines += [f"    - type: {kind}", f"      name: {_yaml(rule)}",
                          f"      value: {entry[key]:.6f}"]
    return "\n".join([*lines, "---"])


def _about(checkpoint):
    config = checkpoint["config"]
    arch = config["arch"]
    backbone = arch.get("args", {}).get("backbone")
    numbers = sum(tensor.numel() for tensor in checkpoint["model"].values()
                  if tensor.is_floating_point())
    return (f"{arch['type']}{f' with {backbone}' if isinstance(backbone, str) else ''}, "
            f"{numbers / 1e6:.2f} M parameters, for semantic segmentation into "
            f"{len(checkpoint['class_names'])} classes, trained on "
            f"{config['train_loader']['type']}. {FILL_IN}: what the network is for, "
            "in a sentence or two.")


def _scores(entries, checkpoint):
    config = checkpoint["config"]
    if not entries:
        return ("Not measured. `python test.py -r model.pth` scores the network on its validation "
                "data; publish it again after that.")
    rows = ["| data | images | rule | mean IoU | 95 % | mIoU_I | pixel accuracy | protocol |",
            "| --- | ---: | --- | ---: | --- | ---: | ---: | --- |"]
    for entry in entries:
        bounds = (entry.get("intervals") or {}).get("Mean_IoU") or {}
        rows.append("| " + " | ".join((
            _text(data_of(entry)),
            str(entry.get("n_images")), _text(entry.get("procedure")),
            percent(entry.get("Mean_IoU")), bounds_text(bounds.get("low"), bounds.get("high")),
            percent(entry.get("mIoU_I")), percent(entry.get("Pixel_Accuracy")),
            _text(protocol_of(entry)))) + " |")
    split = next((entry.get("split") for entry in entries), None)
    chosen = config["trainer"].get("monitor")
    warning = ""
    chosen_on = (config.get("val_loader") or {}).get("args", {}).get("split")
    if split and split == chosen_on and chosen not in (None, "off") \
            and checkpoint.get("epoch") is not None:
        warning = (f"\n\nThe checkpoint was chosen by {chosen} on this split, so its score there "
                   "is a little too good.")
    classes = ["| class | IoU | IoU per image |", "| --- | ---: | ---: |"]
    classes += [f"| {_text(one.get('name'))} | {percent(one.get('IoU'))} | "
                f"{percent(one.get('IoU_I'))} |" for one in entries[0].get("classes") or []
                if isinstance(one, dict)]
    settings = "\n".join(f"* {_text(title_of(entry))}" for entry in entries)
    return ("In %. The interval is that for other images of the same kind.\n\n" + "\n".join(rows)
            + warning + f"\n\nHow each was taken:\n\n{settings}\n\nClasses (first row above):\n\n"
            + "\n".join(classes))


def _use(config, scored_at):
    size = f" Images are resized to {scored_at} first, as in validation." if scored_at else ""
    scored = "test_loader" if config.get("test_loader") else "val_loader"
    test, train = (" ".join(f"{key}.args.data_dir=/data/NAME" for key in keys if _has_folder(
        config, key)) for keys in ([scored], ["train_loader", "val_loader"]))
    segwright = "python PATH/TO/segwright"
    return ("With a clone of Segwright and its packages (`pip install -r requirements.txt`), in "
            "this folder:\n\n```bash\n"
            f"{segwright}/inference.py -r model.pth --images photos --overlay\n"
            + f"{segwright}/test.py -r model.pth {test}".rstrip() + "\n"
            + f"{segwright}/train.py -c config.json {train}".rstrip() + "\n```\n\n"
            "The last line trains it again. `model.safetensors` is the same network and does in "
            "place of `model.pth`." + size)


def _has_folder(config, key):
    return bool(((config.get(key) or {}).get("args") or {}).get("data_dir"))


def _input(checkpoint, scored_at):
    norm = checkpoint["normalization"]
    rows = ["| id | class | color |", "| ---: | --- | --- |"]
    rows += [f"| {number} | {_text(name)} | `#{bytes(color).hex()}` |" for number, (name, color)
             in enumerate(zip(checkpoint["class_names"], checkpoint["palette"], strict=False))]
    bands = bands_of_state(norm.get("bands"))
    pictures = f"{norm.get('order', 'RGB')} pictures" if bands is None else \
        f"Pictures of {bands.text}, as stored"
    return (f"{pictures}, `(x / {norm.get('scale', 255):g} - mean) / std` "
            f"with mean {norm['mean']} and std {norm['std']}; size: "
            f"{scored_at or 'any, as they are'}. "
            f"{_OF_PROBABILITIES[checkpoint.get('activation', 'softmax')]}.\n\n" + "\n".join(rows))


def _training(checkpoint, changes):
    config, versions = checkpoint["config"], checkpoint.get("versions", {})
    if checkpoint.get("epoch") is None:
        origin = versions.get("published") or FILL_IN
        score = f", published score: {_text(versions['score'])}" if versions.get("score") else ""
        return (f"The weights were trained by another program and converted ({origin}{score}). "
                "`config.json` describes the network and the data, not that training.")
    trainer, optimizer = config["trainer"], config["optimizer"]
    length = counted(trainer["epochs"], "epoch") if trainer.get("epochs") else \
        counted(trainer.get("iterations") or 0, "step")
    loss = config["loss"]
    names = loss if isinstance(loss, list) else [loss] if "type" in loss else list(loss.values())
    lines = [f"{length}, {optimizer['type']} with lr {optimizer['args'].get('lr')}, "
             f"{config['lr_scheduler']['type']}, loss "
             f"{', '.join(dict.fromkeys(str(one['type']) for one in names))}, batches of "
             f"{config['train_loader']['args'].get('batch_size')} per process, seed "
             f"{config['seed']}. `config.json` has everything."]
    if changes:
        lines.append("Different from the config of the training:\n\n"
                     + "\n".join(f"* {_text(change)}" for change in changes))
    return "\n\n".join(lines)


def _yaml(value: Any) -> str:
    """A value as YAML, of which JSON is a part."""
    return json.dumps(value, ensure_ascii=False)


def _text(value: object) -> str:
    """Text in which Markdown and HTML signs of a name do nothing."""
    text = " ".join(str(value).split())
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>|#" else sign for sign in text)
