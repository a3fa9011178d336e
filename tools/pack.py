"""Decode a dataset once: its pixels as bytes that training maps into memory.

examples:
  python -m tools.pack --type CityScapes --args '{"data_dir": "cs", "split": "val"}' -o packed/val
  python -m tools.pack --type Folder --args '{"data_dir": "leaves"}' -o packed/leaves --verify

Then say "cache": "packed/val" in the loader's args. Every sample is what the files hold, bit for
bit; augmentation, classes and batches stay as they are. The same command again writes what is
missing or has changed, and nothing if nothing has. It needs four bytes a pixel: 25 GB for the 2975
pictures of Cityscapes train. The files of the dataset have to stay: their names, sizes and times
are compared, so that a cache of other files is never read.
"""
import argparse
import os
import shutil
import sys
from pathlib import Path

from utils import console


def parse(argv):
    parser = argparse.ArgumentParser(prog="python -m tools.pack", description=__doc__,
                                     epilog=console.EXIT_STATUSES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--type", required=True, metavar="NAME", help="a dataset of `train.py --list datasets`")
    add("--args", required=True, metavar="JSON",
        help="its arguments, as in a config; those of the augmentation and the loader may stay")
    add("-o", "--output", required=True, metavar="DIR", help="a folder for this cache alone")
    add("-n", "--dry-run", action="store_true", help="say what would be written, write nothing")
    add("--verify", action="store_true",
        help="write nothing; read the whole cache and compare its checksums")
    add("--seed", type=int, default=0,
        help="seed of the config, for data that is made up from it (default 0)")
    add("--workers", type=int, default=min(8, os.cpu_count() or 1), help="decoding threads")
    add("--debug", action="store_true", help="show the traceback of every error")
    args = parser.parse_args(argv)
    if args.workers < 1:
        parser.error("--workers must be at least 1")
    if args.dry_run and args.verify:
        parser.error("--dry-run and --verify exclude each other")
    return args


def main(argv=None):
    args = parse(argv)
    from utils.jsonc import parse_jsonc
    dataset = open_dataset(args.type, parse_jsonc(args.args, "--args"), args.seed)
    if args.verify:
        return verify(dataset, args.output)
    return pack(dataset, args.output, args.workers, args.dry_run)


def open_dataset(name: str, given: dict, seed: int = 0):
    """The dataset `name` without augmentation; ConfigError for unusable arguments."""
    from utils.config import split_args
    from utils.config_schema import section_callables
    from utils.errors import ConfigError
    from utils.registry import components, lookup
    from utils.signature import fields, value_name
    cls = lookup(name, components("datasets"), "--type")
    if not isinstance(given, dict):
        raise ConfigError(f"expected an object, found {value_name(given)}", "--args")
    own, *_ = split_args({"type": name, "args": given}, *section_callables("datasets", cls))
    for key, field in fields(cls).items():
        if field.required and key not in own:
            raise ConfigError(f"{name} needs the argument {key!r}", "--args")
        if key in own and not field.fits(given[key]):
            raise ConfigError(f"{key}: expected {field.expected}, found {value_name(given[key])}",
                              "--args")
    return cls(**own, seed=seed)


def pack(dataset, folder, workers: int = 1, dry_run: bool = False) -> int:
    """Write the cache of a dataset, or what is missing of it; the exit status."""
    from tqdm import tqdm

    from dataloader.pixel_cache import CachePlan
    from utils.errors import DataError
    plan = CachePlan(dataset, folder)
    images = sum(len(plan.shards[number]) for number in plan.todo)
    what = (f"{images} of {len(dataset)} samples in {len(plan.todo)} of {len(plan.shards)} files, "
            f"about {_size(plan.bytes_to_write)}")
    if plan.complete:
        print(f"{folder} is complete: {len(dataset)} samples, {_size(_written(folder))}")
        return 0
    if dry_run:
        print(f"would write {what}, into {folder}; {_size(_room(folder))} are free")
        return 0
    if plan.bytes_to_write > _room(folder):
        raise DataError(f"{what} are to be written and {_size(_room(folder))} are free",
                        str(folder), "name a folder on another disk")
    with tqdm(total=images, desc="packing", unit="image", leave=False, dynamic_ncols=True,
              disable=None) as bar:
        plan.write(workers, bar.update)
    print(f"wrote {images} of {len(dataset)} samples; {folder} holds {_size(_written(folder))}")
    console.notice(f"read it with \"cache\": \"{folder}\" in the args of the loader")
    return 0


def verify(dataset, folder) -> int:
    """Read a whole cache; DataError where it is not what was written."""
    from tqdm import tqdm

    from dataloader.pixel_cache import verify_cache
    with tqdm(total=len(dataset), desc="verifying", unit="image", leave=False, dynamic_ncols=True,
              disable=None) as bar:
        verify_cache(folder, dataset, bar.update)
    print(f"{folder} is whole: {len(dataset)} samples")
    return 0


def _room(folder):
    """Free bytes of the disk that the folder is, or will be, on."""
    place = Path(folder).expanduser().absolute()
    while not place.is_dir():
        place = place.parent
    return shutil.disk_usage(place).free


def _written(folder):
    return sum(entry.stat().st_size for entry in os.scandir(Path(folder).expanduser()))


def _size(count):
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


if __name__ == "__main__":
    sys.exit(console.run(main))
