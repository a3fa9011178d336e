"""Reads and writes video files, and reads cameras.

OpenCV decodes and encodes them with FFmpeg, which its wheels contain. It crashes on file names
that are not UTF-8, so it gets only symbolic links with plain names. Sound is not copied.
"""
import contextlib
import errno
import glob
import os
import struct
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from utils.errors import DataError, shown
from utils.files.whole_file import WholeFile, cannot_write
from utils.images.image_list import Source
from utils.images.types import Image

if TYPE_CHECKING:
    import cv2

# Without this FFmpeg writes its own lines to stderr. Read when OpenCV opens its first video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
CAMERA = "camera:"
FILM = ".mp4"               # suffix of a result: MPEG-4, which every build of OpenCV can write
FRAMES = "_frames"          # suffix of the folder with a label map per frame
DEFAULT_RATE = 25.0         # frames/s, for a source that does not state its rate
ROOM_EVERY = 64             # frames after which a film asks whether its disk is full
CHECK_VIDEO = "check that it plays; other formats: ffmpeg -i IN OUT.mp4"


def split_videos(inputs: list[str]) -> tuple[list[Source], list[str]]:
    """Returns the videos and cameras ("camera:0") among the inputs, and the other inputs.

    A file or a pattern is a video if it ends in one of VIDEO_SUFFIXES. Videos in folders are
    ignored. Raises DataError for a video file that does not exist.
    """
    videos, others = [], []
    for given in inputs:
        if given.startswith(CAMERA) and given[len(CAMERA):].isdecimal():
            videos.append(Source(given, given.replace(":", "-")))
        elif given.lower().endswith(VIDEO_SUFFIXES) and not os.path.isdir(given):
            paths = [given] if os.path.isfile(given) else \
                sorted(filter(os.path.isfile, glob.glob(given, recursive=True)))
            if not paths:
                raise DataError("no such file", shown(given), "give a video file or camera:0")
            videos += [Source(path, os.path.basename(path)) for path in paths]
        else:
            others.append(given)
    return videos, others


class VideoReader:
    """Iterates over the frames of a video file or of "camera:N": uint8 (H, W, 3), RGB.

    frames_per_s: the rate that the source states. length: the number of frames that it states,
    0 if unknown. size: [height, width].
    Raises DataError for a source that OpenCV cannot open.
    """

    def __init__(self, path: str):
        import cv2
        self._cv2, self._folder = cv2, _folder_of_links()
        if path.startswith(CAMERA):
            self._capture = cv2.VideoCapture(int(path[len(CAMERA):]))
        else:
            link = os.path.join(self._folder.name, "in" + os.path.splitext(path)[1].lower())
            os.symlink(os.path.abspath(path), link)
            self._capture = cv2.VideoCapture(link)
        if not self._capture.isOpened():
            self._folder.cleanup()
            raise DataError("cannot be opened as a video", shown(path), CHECK_VIDEO)
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.frames_per_s = rate if 0 < rate < 1000 else DEFAULT_RATE
        self.length = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.size = [int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
                     int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))]

    def __iter__(self) -> Iterator[Image]:
        return self

    def __next__(self) -> Image:
        success, frame = self._capture.read()
        if not success:
            raise StopIteration
        return self._cv2.cvtColor(frame, self._cv2.COLOR_BGR2RGB)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_):
        self._capture.release()
        self._folder.cleanup()


class VideoWriter:
    """Writes an MPEG-4 file of frames that all have the size of the first one.

    The codec has even sizes only: of an odd size, the last row or column is written twice. (OpenCV
    would leave it out.)

    The file appears when the `with` block ends, and it is complete and playable, even if a signal
    ended the block after some of the frames. If an exception ends the block, or no frame was
    written, there is no new file and an older one stays. OpenCV does not report a full disk, so the
    file is examined before it gets its name; DataError if anything is missing.
    """

    def __init__(self, path: str, frames_per_s: float):
        self.path, self.frames_per_s, self.frames = path, frames_per_s, 0
        self._encoder: cv2.VideoWriter | None = None        # both from the first frame on
        self._file: WholeFile | None = None
        self._folder = _folder_of_links()

    def write(self, frame: Image):
        """Append a frame, uint8 (H, W, 3), RGB. Raises DataError if the file cannot be opened."""
        import cv2
        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if self._encoder is None:
            self._encoder = self._open(*frame.shape[:2])
        elif self.frames % ROOM_EVERY == 0:
            self._require_room()
        self._encoder.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def _require_room(self):
        """Raise DataError if the disk is full: the film would be examined hours later."""
        assert self._file is not None, "the file is open"
        with contextlib.suppress(OSError):      # no statvfs here, or the folder is gone
            disk = os.statvfs(self._file.temporary.parent)
            if disk.f_blocks and not disk.f_bfree:
                raise cannot_write(self.path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def _open(self, height, width) -> "cv2.VideoWriter":
        import cv2
        folder = os.path.dirname(os.path.abspath(self.path))
        try:
            os.makedirs(folder, exist_ok=True)
            self._file = WholeFile(self.path, FILM, durable=True)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        link = os.path.join(self._folder.name, "out")
        os.symlink(folder, link)
        codec = cv2.VideoWriter_fourcc(*"mp4v")         # pyright: ignore[reportAttributeAccessIssue]
        encoder = cv2.VideoWriter(os.path.join(link, self._file.temporary.name), codec,
                                  self.frames_per_s, (width, height))
        if not encoder.isOpened():
            raise DataError(f"cannot write a video of {height}x{width}", shown(self.path),
                            "this OpenCV may lack FFmpeg: opencv-python includes it")
        return encoder

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None):
        try:
            if self._encoder is not None:
                self._encoder.release()
            if self._file is not None and kind is None:
                if frames_in_film(self._file.temporary) != self.frames:
                    raise DataError(f"cannot write: not all {self.frames} frames are in the file",
                                    shown(self.path), "is the disk full, or is there a quota? Free "
                                                      "some space, or choose another disk with -o")
                self._file.finish()
        except OSError as error:
            raise cannot_write(self.path, error) from None
        finally:
            if self._file is not None:
                self._file.discard()        # does nothing after `finish`
            self._folder.cleanup()


def _folder_of_links() -> tempfile.TemporaryDirectory:
    """A temporary folder for links with plain names. Raises DataError if there can be none."""
    try:
        return tempfile.TemporaryDirectory(prefix="segwright-")
    except OSError as error:
        raise DataError(f"cannot make a temporary folder: {error.strerror or error}", None,
                        "set TMPDIR to a folder with room") from None


def frames_in_film(path: str | os.PathLike) -> int:
    """The number of frames in an MPEG-4 file of `VideoWriter`; 0 if bytes are missing.

    The file is a row of boxes, each with its size and name (ISO/IEC 14496-12). The pictures lie in
    "mdat", and "moov", written last, has their sizes. Where a disk was full, the positions that
    were counted while writing are beyond those of the file, so the row does not end at its end.
    """
    with open(path, "rb") as file:
        end = os.fstat(file.fileno()).st_size
        outer = dict(_boxes(file, 0, end))
        if not {b"mdat", b"moov"} <= set(outer) or max(last for _, last in outer.values()) != end:
            return 0
        place = outer[b"moov"]
        for name in (b"trak", b"mdia", b"minf", b"stbl", b"stsz"):
            place = dict(_boxes(file, *place)).get(name)
            if place is None:
                return 0
        # Version and flags, the size of all samples or 0, their number, and the size of each.
        file.seek(place[0])
        table = file.read(place[1] - place[0])
        common, count = struct.unpack(">4xII", table[:12])
        sizes = [common] * count if common else struct.unpack(f">{count}I", table[12:])
        start, stop = outer[b"mdat"]
        return count if sum(sizes) <= stop - start and all(sizes) else 0


def _boxes(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """(name, (first byte of the content, byte after it)) of the boxes from `start` to `stop`.

    Ends at a box that does not fit.
    """
    while start + 8 <= stop:
        file.seek(start)
        header = file.read(16)
        size, name = struct.unpack(">I4s", header[:8])
        first = 8
        if size == 1 and len(header) == 16:     # a size of 64 bits follows the name
            size, first = struct.unpack(">8xQ", header)[0], 16
        if size < first or start + size > stop:
            return
        yield name, (start + first, start + size)
        start += size
