"""Make a folder that other people can use: weights, config, scores and a model card.

examples:
  python -m tools.publish saved/camvid_enet/2026-11-21_09-00-00 published
  python -m tools.publish auto published --onnx --license cc-by-4.0
  python -m tools.publish model_best.pth published --push NAME/camvid-enet

The folder has the layout of the Hugging Face Hub: README.md (the model card, with what you have to
fill in marked), model.pth without the state of the training, model.safetensors, config.json, and
results.json with the scores that test.py has written of this very checkpoint. Paths of your machine
and accounts are replaced in all of them; what was replaced is printed. Of the files that the config
names only class files are copied, without comments.
"""
import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from utils.cli import console
from utils.cli.arguments import command_parser
from utils.predict.arguments import CHECKPOINT_HELP

CARD, WEIGHTS, TENSORS, GRAPH = "README.md", "model.pth", "model.safetensors", "model.onnx"
CONFIG, RESULTS, CLASSES = "config.json", "results.json", "classes.json"
# Files that not every publication has: those of an earlier one are deleted.
WRITTEN = (TENSORS, GRAPH, RESULTS, CLASSES, "classes-[0-9]*.json")
_SET_BY_USER = ("data_dir", "cache", "finetune_from")     # paths that a config needs no file for


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
    from utils.machine.packages import optional_package
    hub = optional_package("huggingface_hub", "--push", "--push") if args.push else None
    if args.onnx:
        from utils.export.graph import require_packages
        require_packages("onnx")
    from utils.checkpoint.find import find_checkpoint
    from utils.checkpoint.read import as_checkpoint_errors, read_checkpoint_and_digest
    path = Path(find_checkpoint(args.checkpoint))
    checkpoint, digest = read_checkpoint_and_digest(path)
    entries = _results(Path(args.results) if args.results else path.parent / RESULTS, digest,
                       given=bool(args.results))
    folder.parent.mkdir(parents=True, exist_ok=True)
    # What fails leaves the folder as it was.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".publish-") as made, \
            as_checkpoint_errors(str(path)):
        files = _write(args, Path(made), checkpoint, entries)
        _replace(folder, Path(made), files)
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
        runs = json.loads(path.read_bytes(), parse_constant=int)["runs"]
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
    """Write all files into a folder; returns what each is, the card first."""
    from utils.checkpoint.read import file_digest
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
    classes = _class_files(checkpoint["config"], config)
    write_checkpoint(folder / WEIGHTS, public)
    write_safetensors(folder / TENSORS, public)
    save_config(config, folder / CONFIG)
    for name, content in classes.items():
        write_bytes(folder / name, content)
    files = {WEIGHTS: "the network, for `-r` of all programs; without the state of the training",
             TENSORS: "the same in the safetensors format",
             CONFIG: "the config of the training, with all defaults",
             **dict.fromkeys(classes, "names and colors of the classes, for config.json")}
    if entries:
        entries, changed = _public_results(entries, file_digest(folder / WEIGHTS))
        changes += changed
        text = json.dumps({**entries[0], "runs": entries}, indent=1, allow_nan=False)
        write_bytes(folder / RESULTS, text.encode() + b"\n")
        files[RESULTS] = "every score of this network, as test.py writes it"
    if args.onnx:
        from tools import export
        export.main(["-r", str(folder / WEIGHTS), "-o", str(folder / GRAPH)])
        files[GRAPH] = "the graph, with normalization and metadata: python -m tools.run_onnx"
    size = validated_size(config)
    card = model_card(public, entries, name=args.name or str(config.get("name")),
                      license_id=args.license, files=files, changes=changes,
                      scored_at=base_size_text(size) if size else None)
    write_bytes(folder / CARD, card.encode())
    for line in changes:
        console.notice(f"changed: {line}")
    return {CARD: "the model card", **files}


def _replace(folder: Path, made: Path, files):
    """Move the files to their folder, and delete there what else an earlier publication wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in WRITTEN:
        for path in sorted(folder.glob(pattern)):
            if path.name not in files and path.is_file():
                path.unlink()
                console.notice(f"removed: {path}, of an earlier publication")
    for name in files:
        shutil.move(made / name, folder / name)


def _class_files(before, after) -> dict[str, bytes]:
    """Name -> content of the class files of the data, which the config is of no use without.

    before, after: the config of the training, and the public one, which gets the new names. A
    checkpoint may name any file of this machine: only what reads as a class file is copied.
    """
    from dataloader.folder import read_classes
    from utils.config.schema import PATHS
    from utils.errors import ConfigError, shown
    found: dict[bytes, str] = {}

    def walk(old, new, place):
        if isinstance(old, list):
            for number, pair in enumerate(zip(old, new, strict=False)):      # log_to is empty now
                walk(*pair, f"{place}[{number}]")
        if not isinstance(old, dict):
            return
        for key, public in zip(old, new, strict=True):
            value, where = old[key], f"{place}.{key}" if place else str(key)
            if key not in needed or not isinstance(value, str) or not value:
                walk(value, new[public], where)
            elif key == "classes":
                try:
                    content = read_classes(value, Path(str(old.get("data_dir") or "")).expanduser())
                except ConfigError as error:
                    console.warn(f"{where} is not copied: {error}; {without}")
                    continue
                data = json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n"
                name = CLASSES if not found else f"classes-{len(found) + 1}.json"
                if data not in found:
                    console.notice(f"copied: {shown(value)} as {name}")
                new[public] = found.setdefault(data, name)
            else:
                console.warn(f"{where}: {shown(value)} is not copied; {without}")

    without = "the config in the folder does not train without it"
    needed = {name for names in PATHS.values() for name in names} - set(_SET_BY_USER)
    walk(before, after, "")
    return {name: data for data, name in found.items()}


def _public_results(entries, digest: str) -> tuple[list[dict[str, Any]], list[str]]:
    """(the entries as those of the published file, without private paths; a line per change).

    digest: the SHA-256 of the published file.
    """
    from utils.export.public_entries import replacements, without_private
    kept = []
    for entry in entries:
        trained = entry["checkpoint"]
        kept.append({**entry, "checkpoint": {**trained, "path": WEIGHTS, "sha256": digest,
                                             "trained_as": trained["sha256"]}})
        kept[-1].pop("image_scores", None)
    public, replaced = without_private(kept, RESULTS)
    for entry in public:        # a title may name a folder that is not shown otherwise
        args = entry.get("data", {}).get("args", {})
        names = tuple(filter(None, (os.path.basename(str(args.get(key) or "")) for key in
                                    ("data_dir", "classes"))))
        if args.get("data_dir") and not _begins_with(entry.get("data_title"), names):
            entry.pop("data_title", None)
    return public, [f"{RESULTS}: without the scores of single images, which name files",
                    *replacements(replaced)]


def _begins_with(title, names):
    """Whether a title is "NAME split" for a folder, or a class file NAME.classes.json."""
    return str(title).rpartition(" ")[0] in {name.removesuffix(".classes.json") for name in names}


def _push(hub, folder, files, repository):
    """Upload the files. Raises ConfigError with what the Hub says."""
    from utils.errors import ConfigError, first_line
    try:
        hub.create_repo(repository, exist_ok=True, private=True)
        hub.upload_folder(repo_id=repository, folder_path=str(folder), allow_patterns=files,
                          commit_message="Segwright: publish",
                          delete_patterns=[name for name in WRITTEN if name not in files])
    except Exception as error:          # of a service: it may be any
        raise ConfigError(f"the upload failed: {first_line(error)}", f"--push {repository}",
                          f"log in with hf auth login; the folder {folder} is complete, so it can "
                          "also be uploaded by hand") from error
    console.notice(f"uploaded: https://huggingface.co/{repository}")


if __name__ == "__main__":
    sys.exit(console.run(main))
