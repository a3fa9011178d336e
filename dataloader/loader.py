"""Batches of a dataset, read by worker processes.

Images travel as bytes and are normalised on the device. Nothing in a batch
depends on the number of workers: they hold no state, and every key they are
given names the epoch and the sample.
"""
import atexit
import contextlib
import os
import re
import shutil
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal

import torch
from torch.utils.data import DataLoader, default_collate

from base.base_dataset import REPLACES_UNREADABLE, BaseDataset
from dataloader.pixel_cache import use_cache
from dataloader.samplers import BatchPlan, EpochOrder
from dataloader.transforms import Augmentation
from utils.checkpoint_config import loader_section
from utils.config import build, split_args
from utils.config_schema import Component, Components, section_callables
from utils.console import notice, warn
from utils.errors import ConfigError, DataError, UserError, first_line
from utils.image_io import UnreadableFile, shown
from utils.progress import free_memory
from utils.registry import components, lookup
from utils.signature import fields

LISTED_FILES = 8
MAX_WORKERS = max(64, 4 * (os.cpu_count() or 1))     # more would only bring the machine down
LINGER = 30        # seconds a worker outlives a SIGTERM to its process group, see _start_worker


class Loader:
    """The batches of one rank, epoch by epoch.

    Iterating gives {"image": uint8 (N, 3, H, W), "label": (N, H, W), "id":
    [str]} and whatever else the dataset adds. Where the sizes of an evaluation
    batch differ, the tensors come as lists.

    len() is the number of batches of a whole epoch on this rank. Call
    set_epoch before each training epoch; start_batch continues one in the middle,
    skip in the middle of a batch.
    batch_transforms: for the trainer to call, in order, on each batch that has
    arrived on its device.
    """

    def __init__(self, dataset: BaseDataset, plan: BatchPlan, num_workers: int, timeout: float,
                 prefetch_factor: int, pin_memory: bool, on_corrupt: str,
                 batch_transforms: Sequence[Callable[[dict], dict]] = ()):
        self.batch_transforms = list(batch_transforms)
        self.dataset, self.plan, self.batch_size = dataset, plan, plan.batch_size
        self.num_workers, self.skipped, self.broken = num_workers, set(), False
        workers = {}
        if num_workers:
            workers = {"num_workers": num_workers, "persistent_workers": True,
                       "prefetch_factor": prefetch_factor, "timeout": timeout,
                       "worker_init_fn": _start_worker}
            if sys.platform == "linux":
                # Forked workers start in a tenth of a second; the others import torch again.
                workers["multiprocessing_context"] = "fork"
        self._ahead = num_workers * prefetch_factor if num_workers else 1
        self._position, self._iterator = 0, None
        # Own generator: the default one would draw a seed from torch's at every epoch, and
        # training would depend on how often it was interrupted.
        with _without_worker_advice():
            self._loader = DataLoader(_Batches(dataset, plan.training, on_corrupt == "skip"),
                                      batch_sampler=plan, collate_fn=_as_it_is,
                                      pin_memory=pin_memory, generator=torch.Generator(),
                                      **workers)

    def __len__(self):
        return len(self.plan)

    @property
    def smallest_batch(self) -> int:
        """Images of the smallest batch of an epoch."""
        return self.plan.smallest

    def set_epoch(self, epoch: int, start_batch: int = 0, skip: int = 0):
        self.plan.set_epoch(epoch, start_batch, skip)

    def __iter__(self) -> Iterator[dict]:
        self._position = self.plan.start
        self._start_reading()
        if self.num_workers:
            _watch_workers(self)
        while (batch := self._next()) is not None:
            self._position += 1
            self._report(batch.pop("skipped"))
            yield batch

    def _start_reading(self):
        """Start the workers. A signal to stop waits until this returns (utils.stop_signal)."""
        with _without_worker_advice():
            self._iterator = iter(self._loader)

    def close(self):
        """End the worker processes. The loader cannot be used afterwards."""
        # Both are dropped here and now: collected later as part of a reference cycle, torch's
        # iterator would wait for workers that its queues no longer reach.
        self._iterator = self._loader = None
        _with_workers.discard(self)

    def _next(self):
        """The next batch, None at the end; after an error the workers are gone."""
        try:
            batch = next(self._iterator, None)
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            batch = _worker_error(error, [self])
        if isinstance(batch, UserError):
            self.close()
            raise batch
        return batch

    def waiting_for(self, everything: bool = True) -> list[str]:
        """Files of the batch that comes next, or of all batches that the workers may be reading."""
        count = self._ahead if everything else 1
        return [self.dataset.describe(key[1]) for number in range(count)
                for key in self.plan.batch(self._position + number)]

    def _report(self, problems):
        for text in problems:
            if text not in self.skipped:
                self.skipped.add(text)
                warn(f"unreadable image replaced by another ({len(self.skipped)} so far): {text}")


def build_loader(dataset: BaseDataset, batch_size: int = 8, shuffle: bool = False,
                 num_workers: int = 2, drop_last: bool | None = None,
                 pin_memory: bool | None = None, prefetch_factor: int = 2,
                 timeout: float = 120, on_corrupt: Literal["error", "skip"] = "error",
                 batch_transforms: Annotated[list, Components("batch_transforms")] = (),
                 sampler: Annotated[dict | str | None, Component("samplers", short=True)] = None,
                 *, seed: int = 0, rank: int = 0, world_size: int = 1,
                 training: bool = False) -> Loader:
    """A Loader over `dataset`.

    batch_size: images per batch and rank. num_workers: reading processes; 0
    reads in the program itself. drop_last: leave out a last, smaller batch;
    null does so in training. pin_memory: null does so where there is a GPU.
    prefetch_factor: batches each worker reads ahead. timeout: seconds to wait
    for a batch of the workers before giving up. on_corrupt: "skip" replaces an
    unreadable training image by the next one and says so. batch_transforms:
    operations on a whole training batch, in order (`--list batch_transforms`).
    sampler: what an epoch of training visits (`--list samplers`); null visits
    every image once, or what a mixture draws.
    """
    if batch_size < 1 or num_workers < 0 or prefetch_factor < 1 or timeout < 0:
        raise ConfigError(f"batch_size {batch_size} and prefetch_factor {prefetch_factor} must be "
                          f"at least 1, num_workers {num_workers} and timeout {timeout} at least 0")
    if num_workers > MAX_WORKERS:
        raise ConfigError(f"{num_workers} data workers; the limit here is {MAX_WORKERS}",
                          "num_workers", "one per CPU core is plenty")
    if not len(dataset):
        raise DataError(f"{type(dataset).__name__} {dataset.split} has no images")
    if not training and drop_last:
        raise ConfigError("drop_last would leave images out of an evaluation", "drop_last",
                          "remove it")
    if not training and on_corrupt == "skip":
        raise ConfigError("a score over other images is another score: on_corrupt \"skip\" is for "
                          "training", "on_corrupt", "remove it")
    if not training and batch_transforms:
        raise ConfigError("batch_transforms are for training", "batch_transforms", "remove them")
    if not training and sampler:
        raise ConfigError("a score is taken over every image once: sampler is for training",
                          "sampler", "remove it")
    mixing = [build("batch_transforms", section, num_classes=dataset.num_classes)
              for section in batch_transforms]
    draw = len(dataset)
    if training:
        draw = _draw(sampler, dataset, shuffle, seed) if sampler else dataset.draw_epoch
    order = EpochOrder(draw, shuffle, seed)
    images, group = len(order(1)), batch_size * world_size
    if not images:
        raise DataError(f"an epoch of {type(dataset).__name__} {dataset.split} shows no image",
                        fix="draw more of its parts")
    if training and drop_last is not False:
        drop_last = images >= group
        if not drop_last:
            notice(f"{type(dataset).__name__} {dataset.split} has {images} images, fewer "
                   f"than one batch of {group}: drop_last is off")
    plan = BatchPlan(order, batch_size, bool(drop_last), rank, world_size, training)
    if pin_memory is None:
        pin_memory = torch.cuda.is_available()
    return Loader(dataset, plan, num_workers, timeout, prefetch_factor, pin_memory, on_corrupt,
                  mixing)


build_loader.provided = ("dataset", "seed", "rank", "world_size", "training")


def make_loader(section: dict, *, ignore_index: int, seed: int = 0, rank: int = 0,
                world_size: int = 1, training: bool = False, key: str | None = None) -> Loader:
    """The loader of a config section {"type": dataset, "args": {...}}.

    `args` is one flat dict for the dataset class, use_cache, Augmentation and build_loader;
    each key goes to whoever declares it. key: of the section in the config, for messages.
    """
    key = key or ("train_loader" if training else "val_loader")
    dataset_class = lookup(section["type"], components("datasets"), f"{key}.type")
    declared = section_callables("datasets", dataset_class)
    dataset_args, cache_args, augmentation_args, loader_args = split_args(section, *declared)
    with _mistakes_in(f"{key}.args", fields(*declared)):
        tolerant = REPLACES_UNREADABLE.set(loader_args.get("on_corrupt") == "skip")
        try:
            dataset = dataset_class(**dataset_args, ignore_index=ignore_index, seed=seed,
                                    augmentation=Augmentation(**augmentation_args))
        except UserError:
            raise
        except (ValueError, OverflowError, MemoryError) as error:
            raise ConfigError(f"{section['type']}: {error or 'not enough memory'}") from error
        finally:
            REPLACES_UNREADABLE.reset(tolerant)
        use_cache(dataset, **cache_args)
        return build_loader(dataset, **loader_args, seed=seed, rank=rank, world_size=world_size,
                            training=training)


def split_loader(config: dict, split: str | None, rank: int = 0, world_size: int = 1) \
        -> tuple[str, dict, Loader]:
    """(key, section, loader) of a split of a whole config, to score or to measure on.

    See utils.checkpoint_config.loader_section.
    """
    key, section = loader_section(config, split)
    return key, section, make_loader(section, ignore_index=config["ignore_index"],
                                     seed=config["seed"], rank=rank, world_size=world_size,
                                     key=key)


@contextlib.contextmanager
def _mistakes_in(place, keys):
    """A mistake in one of `keys` is named with the place of them all in the config."""
    try:
        yield
    except ConfigError as error:
        if error.where and re.match(r"\w*", error.where)[0] not in keys:
            raise                       # it lies in a file
        where = f"{place}.{error.where}" if error.where else place
        raise ConfigError(error.what, where, error.fix) from error.__cause__


def _draw(section, dataset, shuffle, seed):
    """The sampler of a section."""
    if not shuffle:
        raise ConfigError("a sampler draws its images class by class, which are to be shuffled",
                          "shuffle", "set it to true")
    try:
        return build("samplers", section, dataset=dataset, seed=seed)
    except ConfigError as error:
        if error.where in (section.get("args") or {} if isinstance(section, dict) else {}):
            error = ConfigError(error.what, f"sampler.args.{error.where}", error.fix)
        raise error from None


class _Batches:
    """What the workers run: keys of a batch -> the batch, or the user's mistake that prevents it.

    A mistake is handed over as a value: raised in a worker, it would arrive
    wrapped in the worker's traceback.
    """

    def __init__(self, dataset, training, skip):
        self.dataset, self.training, self.skip = dataset, training, skip

    def __len__(self):
        return len(self.dataset)

    def __getitems__(self, keys):
        try:
            skipped = []
            samples = [self._sample(key, skipped) for key in keys]
            return {**_collate(samples, self.training), "skipped": skipped}
        except UserError as error:
            return error

    def _sample(self, key, skipped):
        if not self.skip:
            return self.dataset[key]
        epoch, index, *rest = key
        for step in range(len(self.dataset)):
            try:
                return self.dataset[epoch, (index + step) % len(self.dataset), *rest]
            except UnreadableFile as error:
                skipped.append(error.in_one_line)
        raise DataError("no image of the dataset can be read", shown(self.dataset.root))


def _collate(samples, training):
    """One tensor per key; lists where the sizes of an evaluation batch differ.

    Images are stacked as they lie in memory, channels last.
    """
    sizes = [tuple(sample["image"].shape[1:]) for sample in samples]
    if len(set(sizes)) > 1:
        if training:
            other = next(i for i, size in enumerate(sizes) if size != sizes[0])
            raise DataError(f"images of one training batch differ in size: {sizes[0]} (height, "
                            f"width) of {shown(samples[0]['id'])}, {sizes[other]} of "
                            f"{shown(samples[other]['id'])}", None,
                            "set crop_size, with \"augment\": true or \"val\": true")
        return {key: [sample[key] for sample in samples] for key in samples[0]}
    batch = {}
    for key, value in samples[0].items():
        values = [sample[key] for sample in samples]
        if key == "image":
            batch[key] = default_collate([v.permute(1, 2, 0) for v in values]).permute(0, 3, 1, 2)
        else:
            batch[key] = default_collate(values) if isinstance(value, torch.Tensor) else values
    return batch


@contextlib.contextmanager
def _without_worker_advice():
    """A config names the workers of the machine it was written on; that is no mistake."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


def _as_it_is(batch):
    return batch


def _start_worker(_):
    import cv2
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # Signals to the whole process group are the program's business: it finishes its step and
    # saves, and needs batches until then. A worker that hangs still ends after a while.
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LINGER))
    # The thread that hands tensors over prints what it meets when the program is gone.
    report = sys.excepthook
    sys.excepthook = lambda kind, *error: \
        None if issubclass(kind, (OSError, EOFError)) else report(kind, *error)


_with_workers = weakref.WeakSet()


def _watch_workers(loader):
    """Turn the death of a worker, noticed at any moment, into a DataError; end workers at exit."""
    if loader in _with_workers:
        return
    _with_workers.add(loader)
    # Registered after torch's own hook, so run before it, which would wait for the workers.
    atexit.register(_close, weakref.ref(loader))
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        return
    torch_handler = signal.getsignal(signal.SIGCHLD)
    if getattr(torch_handler, "translates", False) or not callable(torch_handler):
        return

    def handler(signum, frame):
        try:
            torch_handler(signum, frame)
        except RuntimeError as error:
            # Once is enough: the others are being ended, by us or for the same reason.
            if not any(loader.broken for loader in _with_workers):
                raise _worker_error(error, list(_with_workers)) from None

    handler.translates = True
    signal.signal(signal.SIGCHLD, handler)


def _close(reference):
    loader = reference()
    if loader is not None:
        loader.close()


def _worker_error(error, loaders):
    """The DataError for a worker that died or does not answer."""
    late = "timed out" in str(error)
    for loader in loaders:
        loader.broken = True
    files = [text for loader in loaders for text in loader.waiting_for(everything=not late)]
    listed = ", ".join(files[:LISTED_FILES])
    more = f" and {len(files) - LISTED_FILES} more" if len(files) > LISTED_FILES else ""
    if late:
        for loader in loaders:
            _kill_workers(loader)
        return DataError(f"{str(error).rstrip('.')} while reading {listed}{more}", None,
                         "check that these files can be read (a pipe, a dead network disk?), or "
                         "raise timeout of the loader")
    return DataError(f"a data worker died ({first_line(error).rstrip('.')}); it may have been "
                     f"reading {listed}{more}", None,
                     f"most often the machine is short of memory or of shared memory "
                     f"({_memory_left()}): lower num_workers, prefetch_factor or batch_size, or in "
                     "a container raise --shm-size")


def _kill_workers(loader):
    """A worker stuck in a read does not hear a polite request."""
    for worker in getattr(loader._iterator, "_workers", ()):
        worker.kill()


def _memory_left():
    free = free_memory()
    parts = [] if free is None else [f"{free / 2 ** 30:.1f} GB memory free"]
    if os.path.isdir("/dev/shm"):
        parts.append(f"{shutil.disk_usage('/dev/shm').free / 2 ** 30:.1f} GB free in /dev/shm")
    return ", ".join(parts) or "free memory unknown"
