"""Decode a dataset once and store its pixels, so that training maps them into memory.

examples:
  python -m tools.pack -c config.json
  python -m tools.pack -c config.json --loader val -o packed/val
  python -m tools.pack --type Folder --args '{"data_dir": "leaves"}' -o packed/leaves --verify

A loader with "cache": "packed/leaves" in its args reads the cache in that folder; with -c the cache
is written there, and every part of a mixture names another folder. Every sample equals that of the
files, bit for bit; augmentation, classes and batches stay as they are. Run again, the command
writes only what is missing or has changed. A cache needs four bytes per pixel: 25 GB for the 2975
pictures of Cityscapes train. Keep the files of the dataset: their names, sizes and times are
compared, so that the cache of other files is never read.
"""
import argparse
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import console
from utils.cli.arguments import DEFAULT_WORKERS, at_least, command_parser
from utils.config.dataset_arguments import (
    add_dataset_arguments,
    dataset_config,
    parse_dataset_arguments,
    whole_images,
)

if TYPE_CHECKING:
    from base.base_dataset import BaseDataset


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.pack", __doc__)
    add = parser.add_argument
    add_dataset_arguments(parser)
    add("-o", "--output", metavar="DIR",
        help="a folder only for this cache (default: \"cache\" of the loader's args)")
    add("-n", "--dry-run", action="store_true", help="print what would be written, write nothing")
    add("--verify", action="store_true",
        help="write nothing; read the whole cache and compare its checksums")
    add("--workers", type=at_least(1), default=DEFAULT_WORKERS, help="decoding threads")
    args = parse_dataset_arguments(parser, argv)
    if args.dry_run and args.verify:
        parser.error("give either --dry-run or --verify")
    return args


def main(argv: list[str] | None = None):
    args = parse(argv)
    section, config = dataset_config(args)
    for one, folder in caches_of(section, args.output):
        dataset = whole_images(one, config)
        if args.verify:
            verify(dataset, folder)
        else:
            pack(dataset, folder, args.workers, args.dry_run)


def caches_of(section: dict, output: str | None = None) -> list[tuple[dict, str]]:
    """(section of a dataset without its cache, folder of the cache), for each part of a mixture.

    output: the folder for a single dataset; None takes the "cache" of each part.
    Raises ConfigError if no folder is given.
    """
    from utils.errors import ConfigError
    parts = section["args"].get("parts", [section])
    if output and len(parts) > 1:
        raise ConfigError(f"the data are {len(parts)} parts of a mixture: each needs another "
                          "cache", "--output", "leave -o out and name a \"cache\" in the args of "
                          "each part to pack")
    found = []
    for part in parts:
        args = dict(part["args"])
        folder = args.pop("cache", None)
        if output or folder:
            found.append(({"type": part["type"], "args": args}, output or folder))
    if not found:
        raise ConfigError("no folder for the cache is given", "--output",
                          "give -o DIR, or \"cache\": DIR in the args of the dataset")
    return found


def pack(dataset: "BaseDataset", folder: str | os.PathLike, workers: int = 1,
         dry_run: bool = False):
    """Write the missing parts of the cache of a dataset."""
    from tqdm import tqdm

    from dataloader.pixel_cache import CachePlan
    from utils.errors import DataError
    plan = CachePlan(dataset, folder)
    images = sum(len(plan.shards[number]) for number in plan.todo)
    what = (f"{images} of {len(dataset)} samples in {len(plan.todo)} of {len(plan.shards)} files, "
            f"about {_size(plan.bytes_to_write)}")
    if plan.complete:
        print(f"{folder} is complete: {len(dataset)} samples, {_size(_written(folder))}")
        return
    if dry_run:
        print(f"would write {what}, into {folder}; {_size(_room(folder))} are free")
        return
    if plan.bytes_to_write > _room(folder):
        raise DataError(f"{what} would be written and {_size(_room(folder))} are free",
                        str(folder), "name a folder on another disk")
    with tqdm(total=images, desc="packing", unit="image", leave=False, dynamic_ncols=True,
              disable=None) as bar:
        try:
            plan.write(workers, bar.update)
        except (KeyboardInterrupt, console.Interrupted) as stop:
            raise console.Interrupted(getattr(stop, "signum", signal.SIGINT),
                                      "the same command resumes from here") from None
    print(f"wrote {images} of {len(dataset)} samples; {folder} holds {_size(_written(folder))}")
    console.notice(f"read it with \"cache\": \"{folder}\" in the args of the dataset")


def verify(dataset: "BaseDataset", folder: str | os.PathLike):
    """Read a whole cache. Raises DataError if its bytes have changed since it was written."""
    from tqdm import tqdm

    from dataloader.pixel_cache import verify_cache
    with tqdm(total=len(dataset), desc="verifying", unit="image", leave=False, dynamic_ncols=True,
              disable=None) as bar:
        verify_cache(folder, dataset, bar.update)
    print(f"{folder} is whole: {len(dataset)} samples")


def _room(folder):
    """Free bytes on the disk of a folder, which need not exist yet."""
    place = Path(os.path.expanduser(folder)).absolute()
    while not place.is_dir():
        place = place.parent
    return shutil.disk_usage(place).free


def _written(folder):
    return sum(entry.stat().st_size for entry in os.scandir(Path(os.path.expanduser(folder))))


def _size(count):
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


if __name__ == "__main__":
    sys.exit(console.run(main))
