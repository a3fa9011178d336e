"""Segments video files and cameras: a film of the colours over the frames.

OpenCV reads and writes the films (through FFmpeg, which its wheels contain). It
crashes on file names that are not UTF-8, so it is only ever given links with
plain names. Sound is not copied.
"""
import glob
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import torch
from tqdm import tqdm

from utils.decision import Decision
from utils.distributed import is_main
from utils.errors import ConfigError, DataError
from utils.image_io import shown
from utils.image_list import Source
from utils.open_model import OpenModel
from utils.predictor import Predictor
from utils.visualize import overlay, side_by_side
from utils.whole_files import WholeFile

# FFmpeg would write lines of its own to stderr; read when OpenCV opens its first video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
CAMERA = "camera:"
FILM = ".mp4"               # of the results: MPEG-4, which every build of OpenCV can write
USUAL_RATE = 25.0           # frames/s where a source does not say


def split_videos(inputs: list[str]) -> tuple[list[Source], list[str]]:
    """The videos and cameras ("camera:0") among the inputs, and the other inputs.

    Files and patterns count by their suffix; videos in folders are passed over.
    """
    videos, others = [], []
    for given in inputs:
        found = []
        if given.startswith(CAMERA) and given[len(CAMERA):].isdecimal():
            videos.append(Source(given, given.replace(":", "-")))
        elif given.lower().endswith(VIDEO_SUFFIXES) and not os.path.isdir(given):
            found = [given] if os.path.isfile(given) else \
                sorted(filter(os.path.isfile, glob.glob(given, recursive=True)))
            if not found:
                raise DataError("no such file", shown(given), "give a video file or camera:0")
            videos += [Source(path, os.path.basename(path)) for path in found]
        else:
            others.append(given)
    return videos, others


def segment_video(source: Source, path: str, opened: OpenModel, predictor: Predictor,
                  decision: Decision, *, beside: bool = False, batch: int = 1,
                  most_frames: int | None = None, refiner=None,
                  stopped: Callable[[], bool] = lambda: False) -> dict:
    """Write the film of one video or camera with the colours of its labels over every frame.

    beside: the frame stands to the left of that. batch: frames in one forward.
    stopped: asked after every batch; the film then ends there and is a whole file.
    returns {"image", "size", "files", "frames", "frames_per_s", "complete"}.
    Raises DataError for what cannot be read or written.
    """
    if refiner and not refiner.needs_image:
        raise ConfigError("a video cannot be refined with offset files", "--segfix",
                          "give a SegFix checkpoint")
    start, frames, complete = time.perf_counter(), 0, True
    with VideoReader(source.path) as reader, ThreadPoolExecutor(1) as ahead, \
            ThreadPoolExecutor(1) as behind, \
            VideoWriter(path, reader.frames_per_s) as writer, \
            tqdm(total=most_frames or reader.length, desc="segmenting", unit="frame", leave=False,
                 disable=None if is_main() else True) as bar:
        writing = deque()
        for group in _groups(_read_ahead(reader, ahead, 2 * batch), batch, most_frames):
            x = torch.from_numpy(np.stack(group)).to(opened.device).permute(0, 3, 1, 2)
            labels = predictor.labels(x, decision)
            if refiner:
                labels = torch.stack([refiner(one, image, source.path)
                                      for one, image in zip(labels, x, strict=True)])
            writing.append(behind.submit(_write, writer, group, labels.cpu().numpy(),
                                         opened.palette, beside))
            while len(writing) > 2:
                writing.popleft().result()
            frames += len(group)
            bar.update(len(group))
            if stopped():
                complete = False
                break
        for written in writing:
            written.result()
    if not frames:
        raise DataError("no frame could be read", shown(source.path),
                        "check that it plays; other formats: ffmpeg -i IN OUT.mp4")
    if complete and not most_frames and reader.length - frames > 1:
        complete = False
    return {"image": source.path, "size": reader.size, "files": [path], "frames": frames,
            "frames_expected": reader.length, "complete": complete,
            "frames_per_s": frames / (time.perf_counter() - start)}


class VideoReader:
    """Frames, uint8 (H, W, 3) RGB, of a video file or of "camera:N", as an iterator.

    frames_per_s: as the source says. length: number of frames it claims, 0 if
    unknown. size: [height, width].
    """

    def __init__(self, path: str):
        import cv2
        self._cv2, self._folder = cv2, tempfile.TemporaryDirectory(prefix="segwright-")
        if path.startswith(CAMERA):
            self._capture = cv2.VideoCapture(int(path[len(CAMERA):]))
        else:
            link = os.path.join(self._folder.name, "in" + os.path.splitext(path)[1].lower())
            os.symlink(os.path.abspath(path), link)
            self._capture = cv2.VideoCapture(link)
        if not self._capture.isOpened():
            self._folder.cleanup()
            raise DataError("cannot be opened as a video", shown(path),
                            "check that it plays; other formats: ffmpeg -i IN OUT.mp4")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.frames_per_s = rate if 0 < rate < 1000 else USUAL_RATE
        self.length = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.size = [int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
                     int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))]

    def __iter__(self):
        return self

    def __next__(self) -> np.ndarray:
        there, frame = self._capture.read()
        if not there:
            raise StopIteration
        return self._cv2.cvtColor(frame, self._cv2.COLOR_BGR2RGB)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._capture.release()
        self._folder.cleanup()


class VideoWriter:
    """An MPEG-4 film; the size is that of its first frame.

    The file appears whole when the `with` block ends, also where it ends early
    by a Ctrl-C between two frames; after an error there is none.
    """

    def __init__(self, path: str, frames_per_s: float):
        self.path, self.frames_per_s = path, frames_per_s
        self._writer = None
        self._files = ExitStack()
        self._folder = self._files.enter_context(tempfile.TemporaryDirectory(prefix="segwright-"))

    def write(self, frame: np.ndarray):
        """Append a frame, uint8 (H, W, 3) RGB."""
        import cv2
        if self._writer is None:
            self._open(cv2, frame.shape)
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def _open(self, cv2, shape):
        folder = os.path.dirname(os.path.abspath(self.path))
        try:
            os.makedirs(folder, exist_ok=True)
            unfinished = self._files.enter_context(WholeFile(self.path, FILM))
        except OSError as error:
            raise DataError(f"cannot write: {error.strerror or error}", shown(self.path),
                            "choose another output folder with -o") from None
        link = os.path.join(self._folder, "out")
        os.symlink(folder, link)
        self._writer = cv2.VideoWriter(os.path.join(link, unfinished.name),
                                       cv2.VideoWriter_fourcc(*"mp4v"), self.frames_per_s,
                                       (shape[1], shape[0]))
        if not self._writer.isOpened():
            raise DataError(f"cannot write a film of {shape[1]}x{shape[0]}", shown(self.path),
                            "is this OpenCV built without FFmpeg? opencv-python has it")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._writer is not None:
            self._writer.release()
        self._files.__exit__(*error)


def _read_ahead(reader, pool, ahead) -> Iterator[np.ndarray]:
    """The frames, up to `ahead` of them decoded while earlier ones are in the network."""
    waiting = deque(pool.submit(next, reader, None) for _ in range(ahead))
    while waiting:
        frame = waiting.popleft().result()
        if frame is None:
            return
        waiting.append(pool.submit(next, reader, None))
        yield frame


def _groups(frames, size, most):
    group, count = [], 0
    for frame in frames:
        group.append(frame)
        count += 1
        if len(group) == size or count == most:
            yield group
            group = []
        if count == most:
            return
    if group:
        yield group


def _write(writer, frames, labels, palette, beside):
    for frame, label in zip(frames, labels, strict=True):
        mixed = overlay(frame, label, palette)
        writer.write(side_by_side(frame, mixed) if beside else mixed)
