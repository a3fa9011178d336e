"""Batches of a dataset, read by worker processes.

Images are sent as bytes and normalized on the device. Batches do not depend on
the number of workers: workers have no state, and every key that they read
names the epoch and the sample.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from base.base_dataset import SKIP_UNREADABLE, BaseDataset
from dataloader.augmentation.transforms import Augmentation
from dataloader.pixel_cache import use_cache
from dataloader.samplers import BatchPlan, EpochOrder
from utils.cli.console import notice, warn
from utils.config.build import build, construct, split_args
from utils.config.loader_section import at_own_size, loader_section
from utils.config.registry import components, lookup
from utils.config.schema import Component, Components, section_callables
from utils.config.signature import fields
from utils.errors import ConfigError, DataError, UserError, counted, first_line, listed, shown
from utils.images.headers import UnreadableFile
from utils.machine.memory import free_memory
from utils.machine.running_time import SLICE, RunningClock, is_suspended

LISTED_FILES = 8
MAX_WORKERS = max(64, 4 * (os.cpu_count() or 1))     # more would make the machine unusable
LINGER = 30        # seconds that a worker survives a SIGTERM to its process group


class Loader:
    """The batches of one rank, epoch by epoch.

    Iterating gives {"image": uint8 (N, 3, H, W), "label": (N, H, W), "id":
    [str]} and the dataset's additional targets. If the image sizes of an evaluation
    batch differ, it has lists in place of the tensors.

    len() is the number of batches of a whole epoch on this rank. Call set_epoch
    before each training epoch.
    batch_transforms: called by the trainer, in order, on each batch on its device.
    """

    def __init__(self, dataset: BaseDataset, plan: BatchPlan, num_workers: int, timeout: float,
                 prefetch_factor: int, pin_memory: bool, on_corrupt: str,
                 batch_transforms: Sequence[Callable[[dict], dict]] = ()):
        self.batch_transforms = list(batch_transforms)
        self.dataset, self.plan, self.batch_size = dataset, plan, plan.batch_size
        self.num_workers = num_workers
        self.skipped: set[str] = set()      # messages on images that were replaced
        self.broken = False                 # whether a worker died or did not answer
        workers = {}
        if num_workers:
            workers = {"num_workers": num_workers, "persistent_workers": True,
                       "prefetch_factor": prefetch_factor, "timeout": timeout,
                       "worker_init_fn": _start_worker}
            if sys.platform == "linux":
                # Forked workers start in a tenth of a second; others import torch again.
                workers["multiprocessing_context"] = "fork"
        self._ahead = num_workers * prefetch_factor if num_workers else 1
        self._position = 0                  # the batch that comes next
        self._iterator: Iterator[Any] | None = None
        # A separate generator: the DataLoader's default draws a seed from torch's generator at
        # every epoch, so that training would depend on how often it was interrupted.
        with _without_worker_advice():
            self._batches = _Batches(dataset, plan.training, on_corrupt == "skip")
            self._loader: DataLoader | None = _PatientLoader(
                self._batches, batch_sampler=plan, collate_fn=_unchanged,
                pin_memory=pin_memory, generator=torch.Generator(), **workers)

    def __len__(self) -> int:
        return len(self.plan)

    @property
    def smallest_batch(self) -> int:
        """Number of images in the smallest batch of an epoch."""
        return self.plan.smallest

    def set_epoch(self, epoch: int, start_batch: int = 0, skip: int = 0) -> None:
        """Start the next iteration at batch `start_batch` of an epoch; see BatchPlan.set_epoch."""
        self.plan.set_epoch(epoch, start_batch, skip)

    def next_batch(self, most: int | None = None) -> dict[str, Any]:
        """The batch with which an iteration would begin, read in this process.

        most: number of its images to read; null: all. Raises the errors of the iteration.
        """
        batch = self._batches.__getitems__(self.plan.batch(self.plan.start)[:most])
        if isinstance(batch, UserError):
            raise batch
        self._report(batch.pop("skipped"))
        return batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._position = self.plan.start
        self._start_reading()
        if self.num_workers:
            _watch_workers(self)
        while (batch := self._next()) is not None:
            self._position += 1
            self._report(batch.pop("skipped"))
            yield batch

    def _start_reading(self):
        """Start the workers. A signal to stop waits until this returns (utils.cli.stop_signal)."""
        assert self._loader is not None, "the loader is closed"
        try:
            with _without_worker_advice():
                self._iterator = iter(self._loader)
        except (OSError, RuntimeError) as error:
            # No shared memory for their queues, no further process, thread or open file.
            if not (isinstance(error, OSError) or "can't start new thread" in str(error)):
                raise
            self.close()
            raise DataError(f"{counted(self.num_workers, 'data worker')} cannot be started: "
                            f"{getattr(error, 'strerror', None) or error}", None,
                            f"lower num_workers (0 reads in the program itself), or raise the "
                            f"limits of processes, open files and shared memory "
                            f"({_memory_left()})") from None

    def close(self) -> None:
        """End the worker processes. The loader cannot be used afterwards."""
        for worker in getattr(self._iterator, "_workers", ()):
            if worker.pid and is_suspended(worker.pid):     # it would never end by itself
                worker.kill()
        # Both references are dropped now: if the garbage collector found them later in a reference
        # cycle, torch's iterator would wait for workers that its queues no longer reach.
        self._iterator = self._loader = None
        _with_workers.discard(self)

    def _next(self):
        """The next batch, or None at the end. Ends the workers before it raises a UserError."""
        assert self._iterator is not None, "the loader is closed"
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

    def files_being_read(self, only_next: bool = False) -> list[str]:
        """Image files of the batches that the workers may be reading, or only of the next one."""
        batches = 1 if only_next else self._ahead
        return [self.dataset.describe(index) for number in range(batches)
                for _, index, *_ in self.plan.batch(self._position + number)]

    def _report(self, problems):
        """Warn once of each image that was replaced."""
        for text in problems:
            if text not in self.skipped:
                self.skipped.add(text)
                warn(f"unreadable image replaced by another ({len(self.skipped)} so far): {text}")


def build_loader(dataset: BaseDataset, batch_size: int = 8, shuffle: bool = False,
                 num_workers: int = 2, drop_last: bool | None = None,
                 pin_memory: bool | None = None, prefetch_factor: int = 2,
                 timeout: float = 120, on_corrupt: Literal["error", "skip"] = "error",
                 batch_transforms: Annotated[Sequence, Components("batch_transforms")] = (),
                 sampler: Annotated[dict | str | None, Component("samplers", short=True)] = None,
                 *, seed: int = 0, rank: int = 0, world_size: int = 1,
                 training: bool = False) -> Loader:
    """Build the Loader over `dataset`.

    batch_size: images per batch and rank. num_workers: reading processes; 0
    reads in the program itself. drop_last: leave out a smaller last batch;
    null does so in training. pin_memory: null does so if there is a GPU.
    prefetch_factor: batches that each worker reads ahead. timeout: seconds to
    wait for a batch from the workers before giving up; time in which the job is
    suspended does not count. on_corrupt: "skip"
    replaces an unreadable training image by the next one and warns.
    batch_transforms: operations on a whole training batch, in order
    (`--list batch_transforms`). sampler: what an epoch of training visits
    (`--list samplers`); null visits every image once, or what a mixture draws.
    """
    _check_numbers(batch_size, num_workers, prefetch_factor, timeout)
    if not len(dataset):
        raise DataError(f"{dataset.title} has no images")
    if not training:
        _refuse_training_options(drop_last, on_corrupt, batch_transforms, sampler)
    transforms = [build("batch_transforms", section, num_classes=dataset.num_classes)
                  for section in batch_transforms]
    for transform in transforms:
        if batch_size < transform.least_images:
            notice(f"{type(transform).__name__} has no effect: it mixes the images of a batch, and "
                   f"batch_size is {batch_size}")
    draw = _epoch_draw(dataset, sampler, shuffle, seed) if training else len(dataset)
    order = EpochOrder(draw, shuffle, seed)
    images = len(order(1))
    if not images:
        raise DataError(f"an epoch of {dataset.title} shows no image",
                        fix="draw more of its parts")
    if training and drop_last is not False:
        drop_last = _fills_a_batch(dataset, images, batch_size * world_size)
    plan = BatchPlan(order, batch_size, bool(drop_last), rank, world_size, training)
    if pin_memory is None:
        pin_memory = torch.cuda.is_available()
    return Loader(dataset, plan, num_workers, timeout, prefetch_factor, pin_memory, on_corrupt,
                  transforms)


build_loader.provided = ("dataset", "seed", "rank", "world_size", "training")


def make_loader(section: dict, *, ignore_index: int, seed: int = 0, rank: int = 0,
                world_size: int = 1, training: bool = False, key: str | None = None,
                normalize: Mapping[str, Any] | None = None) -> Loader:
    """Build the loader of a config section {"type": dataset, "args": {...}}.

    `args` is one flat dict for the dataset class, use_cache, Augmentation and build_loader;
    each key is passed to the callable that declares it. key: of the section in the config,
    for messages; null is "train_loader" in training, else "val_loader". normalize: that section
    of the config, whose mean color pads images in place of the dataset's.
    """
    key = key or ("train_loader" if training else "val_loader")
    dataset_class = lookup(section["type"], components("datasets"), f"{key}.type")
    declared = section_callables("datasets", dataset_class)
    dataset_args, cache_args, augmentation_args, loader_args, void_args = \
        split_args(section, *declared)
    with _mistakes_in(f"{key}.args", fields(*declared)):
        token = SKIP_UNREADABLE.set(loader_args.get("on_corrupt") == "skip")
        try:
            dataset = construct(dataset_class, dataset_args, None, {
                "ignore_index": ignore_index, "seed": seed,
                "augmentation": construct(Augmentation, augmentation_args, None)})
        except MemoryError as error:
            raise ConfigError(f"{section['type']}: {error or 'not enough memory'}") from error
        finally:
            SKIP_UNREADABLE.reset(token)
        dataset.normalize_by(normalize)
        dataset.add_void(**void_args, training=training)
        use_cache(dataset, **cache_args)
        return build_loader(dataset, **loader_args, seed=seed, rank=rank, world_size=world_size,
                            training=training)


def split_loader(config: dict, split: str | None, rank: int = 0, world_size: int = 1, *,
                 own_size: bool = False) -> tuple[str, dict, Loader]:
    """(key, section, loader) of one split of a whole config, for evaluation.

    split: as for utils.config.loader_section.loader_section, which picks the section.
    own_size: images and labels keep their sizes; a predictor with the base_size of the section
        resizes the images, and its logits back.
    """
    key, section = loader_section(config, split)
    read = at_own_size(section) if own_size else section
    return key, section, make_loader(read, ignore_index=config["ignore_index"],
                                     seed=config["seed"], rank=rank, world_size=world_size,
                                     key=key, normalize=config.get("normalize"))


@contextlib.contextmanager
def _mistakes_in(place, keys):
    """Put the place in the config in front of the key that a ConfigError of the block names.

    place: of the section's args. keys: those of the args; other errors lie in a file.
    """
    try:
        yield
    except ConfigError as error:
        if error.where and re.split(r"\W", error.where)[0] not in keys:
            raise
        where = f"{place}.{error.where}" if error.where else place
        raise ConfigError(error.what, where, error.fix) from error.__cause__


def _check_numbers(batch_size, num_workers, prefetch_factor, timeout):
    if batch_size < 1 or num_workers < 0 or prefetch_factor < 1 or timeout < 0:
        raise ConfigError(f"batch_size {batch_size} and prefetch_factor {prefetch_factor} must be "
                          f"at least 1, num_workers {num_workers} and timeout {timeout} at least 0")
    if num_workers > MAX_WORKERS:
        raise ConfigError(f"{num_workers} data workers; the limit here is {MAX_WORKERS}",
                          "num_workers", "use about one per CPU core")


def _refuse_training_options(drop_last, on_corrupt, batch_transforms, sampler):
    """Raise ConfigError for options with which an evaluation would score other images."""
    if drop_last:
        raise ConfigError("drop_last would leave images out of an evaluation", "drop_last",
                          "remove it")
    if on_corrupt == "skip":
        raise ConfigError("on_corrupt \"skip\" is only for training: it would replace images of an "
                          "evaluation by others", "on_corrupt", "remove it")
    if batch_transforms:
        raise ConfigError("batch_transforms are only for training", "batch_transforms",
                          "remove them")
    if sampler:
        raise ConfigError("sampler is only for training: an evaluation visits every image once",
                          "sampler", "remove it")


def _epoch_draw(dataset, sampler, shuffle, seed):
    """What a training epoch visits, as EpochOrder takes it: the sampler, or the dataset's draw."""
    if not sampler:
        return dataset.draw_epoch
    if not shuffle:
        raise ConfigError("a sampler draws its images class by class, so they must be shuffled",
                          "shuffle", "set it to true")
    try:
        return build("samplers", sampler, dataset=dataset, seed=seed)
    except ConfigError as error:
        args = sampler.get("args") or {} if isinstance(sampler, dict) else {}
        if error.where in args:
            error = ConfigError(error.what, f"sampler.args.{error.where}", error.fix)
        raise error from None


def _fills_a_batch(dataset, images, batch_size):
    """Whether an epoch has at least one whole batch over all ranks; prints a notice if not."""
    if images >= batch_size:
        return True
    notice(f"{dataset.title} has {counted(images, 'image')}, fewer than one batch of {batch_size}: "
           "drop_last is off")
    return False


class _Batches(Dataset):
    """Runs in the workers: turns the keys of a batch into the batch, or into a UserError.

    The error is returned, because torch adds the worker's traceback to the message of an error
    that a worker raises.
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
                return self.dataset[(epoch, (index + step) % len(self.dataset), *rest)]
            except UnreadableFile as error:
                skipped.append(error.in_one_line)
        raise DataError("no image of the dataset can be read", shown(self.dataset.root))


def _collate(samples, training):
    """One tensor per key; lists if the image sizes of an evaluation batch differ.

    Images are stacked in their memory layout, channels last.
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


class _PatientLoader(DataLoader):
    """Torch's DataLoader, but the timeout counts only time in which the job itself ran."""

    def _get_iterator(self):
        return _PatientIterator(self) if self.num_workers else super()._get_iterator()


class _PatientIterator(_MultiProcessingDataLoaderIter):

    _shutdown = True    # until its constructor has begun workers: its destructor must not fail

    def _try_get_data(self, timeout=SLICE):
        """(True, what a worker sent), or (False, None) after `timeout` seconds."""
        clock = RunningClock("data worker")
        while True:
            asked = min(SLICE, timeout - clock.seconds)
            answer = super()._try_get_data(asked)
            if not answer[0]:
                clock.advance(asked, (worker.pid for worker in self._workers))
            if answer[0] or clock.seconds >= timeout:
                return answer


@contextlib.contextmanager
def _without_worker_advice():
    """Hide torch's warning that num_workers exceeds the CPU cores.

    The config may have been written on another machine.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


def _unchanged(batch):
    return batch


def _start_worker(_):
    import cv2
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # The main process reacts to signals to the process group: it finishes its step and saves, and
    # needs batches until then. A worker that hangs ends LINGER seconds later.
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LINGER))
    # The thread that sends tensors would print an error when the main process has ended.
    report = sys.excepthook
    sys.excepthook = lambda kind, *error: \
        None if issubclass(kind, (OSError, EOFError)) else report(kind, *error)


_with_workers = weakref.WeakSet()      # loaders whose workers are running


def _watch_workers(loader):
    """Raise a DataError as soon as a worker dies, and end the workers when the program exits."""
    if loader in _with_workers:
        return
    _with_workers.add(loader)
    # Registered after torch's hook and so run before it: torch's hook waits for the workers.
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
            # Only the first death is reported: the other workers end because of it.
            if not any(loader.broken for loader in _with_workers):
                raise _worker_error(error, list(_with_workers)) from None

    handler.translates = True
    signal.signal(signal.SIGCHLD, handler)


def _close(reference):
    loader = reference()
    if loader is not None:
        loader.close()


def _worker_error(error, loaders):
    """The DataError for a worker that died or did not answer in time."""
    late = "timed out" in str(error)
    for loader in loaders:
        loader.broken = True
    files = [text for loader in loaders for text in loader.files_being_read(only_next=late)]
    names = listed(files, LISTED_FILES)
    if late:
        for loader in loaders:
            _kill_workers(loader)
        return DataError(f"{str(error).rstrip('.')} while reading {names}", None,
                         "check that these files can be read (is one a pipe, or on a network disk "
                         "that is down?), or raise timeout of the loader")
    return DataError(f"a data worker died ({first_line(error).rstrip('.')}); it may have been "
                     f"reading {names}", None,
                     f"most often the machine is short of memory or of shared memory "
                     f"({_memory_left()}): lower num_workers, prefetch_factor or batch_size, or "
                     "raise --shm-size of a container")


def _kill_workers(loader):
    """End the workers with SIGKILL, because one that hangs in a read ignores SIGTERM."""
    for worker in getattr(loader._iterator, "_workers", ()):
        worker.kill()


def _memory_left():
    """Free memory and shared memory, as text."""
    free = free_memory()
    parts = [] if free is None else [f"{free / 2 ** 30:.1f} GB memory free"]
    if os.path.isdir("/dev/shm"):
        parts.append(f"{shutil.disk_usage('/dev/shm').free / 2 ** 30:.1f} GB free in /dev/shm")
    return ", ".join(parts) or "free memory unknown"
