"""Make a folder that other people can use: weights, config, scores and a model card.

examples:
  python -m tools.publish saved/camvid_enet/2026-11-21_09-00-00 published
  python -m tools.publish auto published --onnx --license cc-by-4.0
  python -m tools.publish model_best.pth published --push NAME/camvid-enet

The folder has the layout of the Hugging Face Hub: README.md (the model card, with what you have to
fill in marked), model.pth without the state of the training, model.safetensors, config.json, and
results.json with the scores that test.py has written of this very checkpoint. Paths of your machine
and accounts are replaced in all of them; what was replaced is printed.
"""
import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from utils.cli import console
from utils.cli.arguments import command_parser
from utils.predict.arguments import CHECKPOINT_HELP

CARD, WEIGHTS, TENSORS, GRAPH = "README.md", "model.pth", "model.safetensors", "model.onnx"
CONFIG, RESULTS, CLASSES = "config.json", "results.json", "classes.json"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.publish", __doc__)
    add = parser.add_argument
    add("checkpoint", metavar="RUN", help="checkpoint to publish" + CHECKPOINT_HELP)
    add("folder", metavar="FOLDER", help="folder to write")
    add("--name", help="title of the card (default: the name of the config)")
    add("--license", metavar="ID", help="identifier of the license of the weights, such as mit "
                                        "(default: to be filled in)")
    add("--results", metavar="FILE",
        help="results.json of test.py (default: that beside the checkpoint)")
    add("--onnx", action="store_true", help="also export model.onnx, compared with PyTorch")
    add("--push", metavar="REPO", help="upload the folder to this repository of the Hugging Face "
                                       "Hub, which is made, private, if it does not exist")
    add("--overwrite", action="store_true", help="replace files of this command in FOLDER")
    args = parser.parse_args(argv)
    if args.license is not None and not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", args.license):
        parser.error(f"--license: {args.license!r} is no identifier such as mit or cc-by-4.0")
    return args


def main(argv: list[str] | None = None):
    args = parse(argv)
    folder = Path(args.folder)
    _require_room(folder, args.overwrite)
    hub = _hub() if args.push else None
    if args.onnx:
        from utils.export.graph import require_packages
        require_packages("onnx")
    from utils.checkpoint.find import find_checkpoint
    from utils.checkpoint.read import read_checkpoint_and_digest
    path = Path(find_checkpoint(args.checkpoint))
    checkpoint, digest = read_checkpoint_and_digest(path)
    entries = _results(Path(args.results) if args.results else path.parent / RESULTS, digest,
                       given=bool(args.results))
    folder.mkdir(parents=True, exist_ok=True)
    files = _write(args, folder, checkpoint, entries)
    console.notice(f"written: {', '.join(str(folder / name) for name in files)}")
    card = (folder / CARD).read_text(encoding="utf-8")
    console.notice(f"fill in {card.count('FILL IN')} places of {folder / CARD} (FILL IN)")
    if hub:
        _push(hub, folder, list(files), args.push)
    print(folder)


def _require_room(folder: Path, overwrite: bool):
    from utils.errors import DataError, listed
    if folder.exists() and not folder.is_dir():
        raise DataError("is a file", str(folder), "give a folder")
    inside = sorted(os.listdir(folder)) if folder.is_dir() else []
    if inside and not overwrite:
        raise DataError(f"the folder is not empty: {listed(inside, 5)}", str(folder),
                        "choose another one, or give --overwrite")


def _hub() -> Any:
    """The package huggingface_hub. Raises ConfigError."""
    import importlib

    from utils.errors import ConfigError
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ConfigError(f"--push needs a package that cannot be imported: {error}", "--push",
                          "pip install huggingface_hub") from None


def _results(path: Path, digest: str, given: bool) -> list[dict[str, Any]]:
    """The entries of a results.json that are of the checkpoint with this SHA-256."""
    from utils.errors import DataError, counted, shown
    if not path.is_file():
        if given:
            raise DataError("no such file", shown(path), "give the results.json of test.py")
        console.notice(f"there is no {shown(path)}: the card says that nothing was measured "
                       "(python test.py -r writes it)")
        return []
    try:
        runs = json.loads(path.read_bytes())["runs"]
        found = [run for run in runs if isinstance(run.get("checkpoint"), dict)
                 and run["checkpoint"].get("sha256") == digest]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"is no results file of test.py ({type(error).__name__})", shown(path),
                        "score the checkpoint again, or give another --results") from None
    if len(found) < len(runs):
        console.notice(f"{shown(path)}: left out {counted(len(runs) - len(found), 'result')} of "
                       "other files, or of other states of this one")
    if not found:
        console.notice("no result is of this checkpoint: the card says that nothing was measured")
    return found


def _write(args, folder, checkpoint, entries) -> dict[str, str]:
    """Write all files; returns what each is, the card first."""
    from utils.checkpoint.safetensors import write_safetensors
    from utils.checkpoint.write import write_checkpoint
    from utils.config.load import save_config
    from utils.config.loader_section import validated_size
    from utils.export.model_card import model_card
    from utils.export.public_entries import public_checkpoint
    from utils.files.whole_file import write_bytes
    from utils.images.base_size import base_size_text
    public, changes = public_checkpoint(checkpoint)
    config = public["config"]
    copied = _copy_classes(checkpoint["config"], config, folder)
    write_checkpoint(folder / WEIGHTS, public)
    write_safetensors(folder / TENSORS, public)
    save_config(config, folder / CONFIG)
    files = {WEIGHTS: "the network, for `-r` of all programs; without the state of the training",
             TENSORS: "the same in the safetensors format",
             CONFIG: "the config of the training, with all defaults", **copied}
    if entries:
        entries = _public_results(entries, folder / WEIGHTS)
        changes.append("results.json: without the scores of single images, which name files")
        text = json.dumps({**entries[0], "runs": entries}, indent=1, allow_nan=False)
        write_bytes(folder / RESULTS, text.encode() + b"\n")
        files[RESULTS] = "every score of this network, as test.py writes it"
    if args.onnx:
        from tools import export
        export.main(["-r", str(folder / WEIGHTS), "-o", str(folder / GRAPH)])
        files[GRAPH] = "the graph, with normalization and metadata: python -m tools.run_onnx"
    for name in {TENSORS, GRAPH, RESULTS, CLASSES} - files.keys():
        if (folder / name).is_file():       # with --overwrite: of what was published before
            (folder / name).unlink()
            console.notice(f"removed: {folder / name}, of an earlier publication")
    size = validated_size(config)
    card = model_card(public, entries, name=args.name or str(config.get("name")),
                      license_id=args.license, files=files, changes=changes,
                      scored_at=base_size_text(size) if size else None)
    write_bytes(folder / CARD, card.encode())
    for line in changes:
        console.notice(f"changed: {line}")
    return {CARD: "the model card", **files}


def _copy_classes(before, config, folder) -> dict[str, str]:
    """Copy the class file of the data into the folder, because the config is of no use without."""
    from utils.files.whole_file import write_bytes
    copied = {}
    for key in ("train_loader", "val_loader", "test_loader"):
        args = (before.get(key) or {}).get("args", {})
        file = args.get("classes")
        if not isinstance(file, str):
            continue
        for place in (file, os.path.join(args.get("data_dir") or "", file)):
            if os.path.isfile(place):
                write_bytes(folder / CLASSES, Path(place).read_bytes())
                config[key]["args"]["classes"] = CLASSES
                copied[CLASSES] = "names and colors of the classes, for config.json"
                break
        else:
            console.warn(f"{key}.args.classes: {file} is not there to be copied; the config in "
                         "the folder does not train without it")
    return copied


def _public_results(entries, weights: Path) -> list[dict[str, Any]]:
    """The entries as those of the published file, without private paths."""
    from utils.checkpoint.read import file_digest
    from utils.export.public_entries import without_private
    digest, public = file_digest(weights), []
    for entry in entries:
        kept = {key: value for key, value in entry.items() if key != "image_scores"}
        trained = entry["checkpoint"]
        kept["checkpoint"] = {**trained, "path": WEIGHTS, "sha256": digest,
                              "trained_as": trained["sha256"]}
        public.append(without_private(kept)[0])
    return public


def _push(hub, folder, files, repository):
    """Upload the files. Raises ConfigError with what the Hub says."""
    from utils.errors import ConfigError, first_line
    try:
        hub.create_repo(repository, exist_ok=True, private=True)
        hub.upload_folder(repo_id=repository, folder_path=str(folder), allow_patterns=files,
                          commit_message="Segwright: publish")
    except Exception as error:          # of a service: it may be any
        raise ConfigError(f"the upload failed: {first_line(error)}", f"--push {repository}",
                          f"log in with hf auth login; the folder {folder} is complete, so it can "
                          "also be uploaded by hand") from error
    console.notice(f"uploaded: https://huggingface.co/{repository}")


if __name__ == "__main__":
    sys.exit(console.run(main))
