"""inference.py on videos: each result is a film, the frames with their labels as colors."""
import json
import os
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.programs.test_inference_py import checkpoint, picture, run, tree  # noqa: F401
from tests.support.limits import files_limited_to
from tests.tools.test_segfix_commands import networks  # noqa: F401
from utils.errors import DataError
from utils.images.image_io import read_image
from utils.images.palette import class_palette
from utils.inference import segment_videos
from utils.inference.segment_videos import _Film
from utils.inference.video_files import (
    VideoReader,
    VideoWriter,
    frames_in_film,
    split_videos,
)
from utils.segfix.refiner import open_refiner


def frames(count, height=48, width=64):
    """A bright square that moves over a gray background."""
    made = []
    for i in range(count):
        frame = np.full((height, width, 3), 90, np.uint8)
        frame[10:30, 4 * i:4 * i + 20] = (250, 200, 40)
        made.append(frame)
    return made


def clip(path, count=10, rate=12.5):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with VideoWriter(str(path), rate) as writer:
        for frame in frames(count):
            writer.write(frame)
    return str(path)


def test_a_film_is_read_as_it_was_written(tmp_path):
    with VideoReader(clip(f"{tmp_path}/a.mp4")) as reader:
        assert reader.frames_per_s == 12.5 and reader.size == [48, 64]
        found = list(reader)
    assert len(found) == 10
    for frame, expected in zip(found, frames(10), strict=True):
        assert np.abs(frame.astype(int) - expected).mean() < 8        # MPEG-4 loses a little


def test_a_film_of_an_odd_size_keeps_its_last_row_and_column(tmp_path):
    frame = np.full((49, 65, 3), 60, np.uint8)
    frame[-9:, :], frame[:, -9:] = (250, 200, 40), (40, 90, 250)
    with VideoWriter(f"{tmp_path}/a.mp4", 10) as writer:
        writer.write(frame)
    with VideoReader(f"{tmp_path}/a.mp4") as reader:
        assert reader.size == [50, 66]
        found, = reader
    for edge in (slice(0, 49), slice(1, 50)):       # the last row is there twice
        assert np.abs(found[edge, :65].astype(int) - frame).mean() < 8
    assert np.abs(found[:49, 1:].astype(int) - frame).mean() < 8


@pytest.mark.parametrize("options,size", [
    (("--no-legend",), [48, 64]), (("--side-by-side", "--batch", 4, "--no-legend"), [48, 132]),
    ((), [102, 240])])
def test_a_clip_becomes_a_playable_film_with_overlay(checkpoint, tmp_path, capsys,  # noqa: F811
                                                     options, size):
    clip(f"{tmp_path}/in/a.mp4")
    assert run(checkpoint, "-i", tmp_path / "in/a.mp4", "-o", tmp_path / "out", "--json",
               *options) == 0
    captured = capsys.readouterr()
    assert "10 frames" in captured.err and "frames/s" in captured.err
    entry = json.loads(captured.out)["images"][0]
    assert entry["frames"] == 10 and entry["frames_per_s"] > 0 and entry["complete"]
    with VideoReader(f"{tmp_path}/out/a.mp4") as film:
        assert film.size == size and film.frames_per_s == 12.5
        found = [frame[:48, :size[1] if "--no-legend" in options else 64] for frame in film]
    assert len(found) == 10 and tree(tmp_path / "out") == ["a.mp4"]
    if "--side-by-side" in options:         # the left half is the original frame
        assert np.abs(found[5][:, :64].astype(int) - frames(10)[5]).mean() < 10
    else:
        assert np.abs(found[5].astype(int) - frames(10)[5]).mean() > 10


def test_one_call_takes_videos_and_images_and_limits_frames(checkpoint, tmp_path,  # noqa: F811
                                                            capsys):
    clip(f"{tmp_path}/in/a.mp4")
    picture(f"{tmp_path}/in/b.png")
    assert run(checkpoint, "-i", tmp_path / "in", f"{tmp_path}/in/*.mp4", "-o", tmp_path / "out",
               "--max-frames", 3) == 0
    assert "2 ok" in capsys.readouterr().err
    assert tree(tmp_path / "out") == ["a.mp4", "b.png"]
    with VideoReader(f"{tmp_path}/out/a.mp4") as film:
        assert len(list(film)) == 3


def test_a_video_name_need_not_be_utf_8(checkpoint, tmp_path):  # noqa: F811
    """OpenCV would crash the interpreter on such a name."""
    name = os.fsdecode(b"caf\xe9 \n.mp4")
    clip(f"{tmp_path}/in/{name}", count=2)
    assert run(checkpoint, "-i", f"{tmp_path}/in/{name}", "-o", tmp_path / "out") == 0
    assert tree(tmp_path / "out") == [name]


def test_a_damaged_video_is_one_line_and_the_others_are_done(checkpoint, tmp_path,  # noqa: F811
                                                          capfd):
    clip(f"{tmp_path}/in/b.mp4", count=2)
    (tmp_path / "in/a.mp4").write_bytes(b"<html>not found</html>")
    (tmp_path / "in/c.avi").write_bytes(b"")
    assert run(checkpoint, "-i", f"{tmp_path}/in/a.mp4", f"{tmp_path}/in/b.mp4",
               f"{tmp_path}/in/c.avi", "-o", tmp_path / "out") == 3
    error = capfd.readouterr().err
    assert "1 ok" in error and "2 failed" in error and len(error.splitlines()) == 1
    assert tree(tmp_path / "out") == ["b.mp4"]


def test_two_videos_with_the_same_stem_keep_their_extensions(checkpoint, tmp_path):  # noqa: F811
    clip(f"{tmp_path}/in/a.mp4", count=2)
    os.link(tmp_path / "in/a.mp4", tmp_path / "in/a.mov")
    assert run(checkpoint, "-i", f"{tmp_path}/in/a.mp4", f"{tmp_path}/in/a.mov", "-o",
               tmp_path / "out") == 0
    assert tree(tmp_path / "out") == ["a.mov.mp4", "a.mp4.mp4"]


def test_a_video_is_never_overwritten_by_its_film(checkpoint, tmp_path, capsys):  # noqa: F811
    kept = open(clip(f"{tmp_path}/a.mp4", count=2), "rb").read()
    assert run(checkpoint, "-i", tmp_path / "a.mp4", "-o", tmp_path) == 3
    assert "overwrite" in capsys.readouterr().err
    assert open(f"{tmp_path}/a.mp4", "rb").read() == kept


@pytest.mark.parametrize("signum,status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_after_a_signal_the_film_is_complete(checkpoint, tmp_path, capsys,  # noqa: F811
                                             monkeypatch, signum, status):
    clip(f"{tmp_path}/in/a.mp4")
    written = segment_videos._write

    def and_then(writer, group, *rest):
        and_then.count += 1
        if and_then.count == 3:
            os.kill(os.getpid(), signum)
        written(writer, group, *rest)
    and_then.count = 0
    monkeypatch.setattr(segment_videos, "_write", and_then)
    assert run(checkpoint, "-i", tmp_path / "in/a.mp4", "-o", tmp_path / "out") == status
    message = capsys.readouterr().err
    assert "is complete and contains the first" in message and len(message.splitlines()) == 1
    assert tree(tmp_path / "out") == ["a.mp4"]
    with VideoReader(f"{tmp_path}/out/a.mp4") as film:
        assert 2 <= len(list(film)) < 10


def test_an_error_while_writing_leaves_no_film(tmp_path):
    with pytest.raises(RuntimeError), VideoWriter(f"{tmp_path}/a.mp4", 10) as writer:
        writer.write(frames(1)[0])
        raise RuntimeError
    assert tree(tmp_path) == []


def test_ctrl_c_while_writing_keeps_the_older_film(tmp_path):
    older = open(clip(f"{tmp_path}/a.mp4", count=2), "rb").read()
    with pytest.raises(KeyboardInterrupt), VideoWriter(f"{tmp_path}/a.mp4", 10) as writer:
        writer.write(frames(1)[0])
        raise KeyboardInterrupt
    assert tree(tmp_path) == ["a.mp4"]
    assert open(f"{tmp_path}/a.mp4", "rb").read() == older


def test_a_film_without_frames_is_not_written(tmp_path):
    with VideoWriter(f"{tmp_path}/new/a.mp4", 10):
        pass
    assert tree(tmp_path) == [] and not (tmp_path / "new").exists()


def test_cameras_and_folders_are_not_taken_for_video_files(tmp_path):
    videos, others = split_videos(["camera:0", str(tmp_path), "camera:x"])
    assert [source.path for source in videos] == ["camera:0"]
    assert others == [str(tmp_path), "camera:x"]


def test_a_missing_camera_is_one_line(checkpoint, tmp_path, capfd):  # noqa: F811
    assert run(checkpoint, "-i", "camera:99", "-o", tmp_path / "out") == 3
    assert "cannot be opened" in capfd.readouterr().err


def test_segfix_networks_refine_images_and_frames(networks, tmp_path):  # noqa: F811
    """--segfix gives what the refiner gives when it is called directly.

    Takes seconds: a SegFix network of full size runs on each image and frame.
    """
    segfix, network, images = networks
    for folder, options in (("plain", ()), ("refined", ("--segfix", segfix))):
        assert run(str(network), "-i", images, "-o", tmp_path / folder, *options) == 0
    refiner, changed = open_refiner(segfix), 0
    for name in tree(tmp_path / "plain"):
        labels, refined = (np.array(Image.open(f"{tmp_path}/{folder}/{name}"))
                           for folder in ("plain", "refined"))
        image = torch.from_numpy(read_image(f"{images}/{name}")).permute(2, 0, 1)
        assert np.array_equal(refined, refiner(labels, image, name))
        changed += (labels != refined).sum()
    assert changed
    clip(f"{tmp_path}/in/a.mp4", count=2)
    assert run(str(network), "-i", f"{tmp_path}/in/a.mp4", "-o", tmp_path / "film", "--segfix",
               segfix) == 0


@pytest.mark.parametrize("classes", [5, 25])
def test_the_frames_of_a_film_have_one_size_whatever_they_show(classes):
    """With many classes the legend lists those of the frame, in lines of a fixed number."""
    names = [f"class {k}" for k in range(classes)]
    opened = SimpleNamespace(class_names=names, palette=class_palette(names))
    film = _Film(SimpleNamespace(opened=opened, legend=True), with_original=False)
    frame = np.full((48, 300, 3), 90, np.uint8)
    pictures = [film.picture(frame, np.full((48, 300), k, np.uint8)) for k in (1, 1, 4, 255)]
    assert len({picture.shape for picture in pictures}) == 1
    assert np.array_equal(pictures[3][:48], frame)

    def listed(picture):        # a box has 144 pixels; smooth letters have a few of any gray
        return [k for k, color in enumerate(opened.palette[1:], 1)
                if (picture[48:] == color).all(-1).sum() > 100]
    if classes == 5:
        assert all(listed(picture) == [1, 2, 3, 4] for picture in pictures)
    else:
        assert [listed(picture) for picture in pictures] == [[1], [1], [4], []]


def labels_of(folder, suffix=".png"):
    return [np.array(Image.open(os.path.join(folder, f"{k:06d}{suffix}"))) for k in range(5)]


def test_frames_are_written_as_label_maps_with_the_other_outputs(checkpoint, tmp_path,  # noqa: F811
                                                                capsys):
    clip(f"{tmp_path}/in/a.mp4", 5)
    assert run(checkpoint, "-i", tmp_path / "in/a.mp4", "-o", tmp_path / "out", "--frames",
               "--overlay", "--masks", "--json") == 0
    folder = tmp_path / "out/a_frames"
    assert json.loads(capsys.readouterr().out)["images"][0]["files"] == [
        str(tmp_path / "out/a.mp4"), str(folder)]
    labels = labels_of(folder)
    for k, frame in enumerate(VideoReader(f"{tmp_path}/in/a.mp4")):
        Image.fromarray(frame).save(tmp_path / "in" / f"{k:06d}.png")
    assert run(checkpoint, "-i", tmp_path / "in", "-e", "png", "-o", tmp_path / "images",
               "--overlay", "--masks") == 0
    assert tree(folder) == tree(tmp_path / "images")
    for mine, theirs in zip(labels, labels_of(tmp_path / "images"), strict=True):
        assert np.array_equal(mine, theirs)


def test_frames_of_an_earlier_film_stay_with_a_warning(checkpoint, tmp_path, capsys):  # noqa: F811
    clip(f"{tmp_path}/in/a.mp4", 5)
    run(checkpoint, "-i", tmp_path / "in/a.mp4", "-o", tmp_path / "out", "--frames")
    capsys.readouterr()
    run(checkpoint, "-i", tmp_path / "in/a.mp4", "-o", tmp_path / "out", "--frames", "--max-frames",
        2)
    assert "a_frames holds files already" in capsys.readouterr().err
    assert len(tree(tmp_path / "out/a_frames")) == 5


@pytest.mark.parametrize("option", ["--masks", "--probabilities", "--workers=2", "--max-pixels=9"])
def test_options_for_images_are_refused_for_videos_alone(checkpoint, tmp_path,  # noqa: F811
                                                         capsys, option):
    clip(f"{tmp_path}/in/a.mp4", 2)
    assert run(checkpoint, "-i", tmp_path / "in/a.mp4", "-o", tmp_path / "out", option) == 2
    assert f"{option.split('=')[0]} has no effect" in capsys.readouterr().err


def test_masks_for_images_and_videos_are_a_notice(checkpoint, tmp_path, capsys):  # noqa: F811
    clip(f"{tmp_path}/in/a.mp4", 2)
    picture(f"{tmp_path}/in/b.png", 48, 64)
    assert run(checkpoint, "-i", tmp_path / "in/a.mp4", tmp_path / "in/b.png", "-o",
               tmp_path / "out", "--masks") == 0
    assert "--masks: for images only" in capsys.readouterr().err


def noise(path, count):
    rng = np.random.default_rng(0)
    with VideoWriter(str(path), 10) as writer:
        for _ in range(count):
            writer.write(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8))


def test_a_film_that_does_not_fit_on_the_disk_is_an_error(tmp_path):
    noise(tmp_path / "whole.mp4", 20)
    size = os.path.getsize(tmp_path / "whole.mp4")
    assert frames_in_film(tmp_path / "whole.mp4") == 20
    # Full in the header, in the pictures, in the index that ends the file, and by one byte.
    for limit in (20, size // 3, size - 400, size - 1):
        with files_limited_to(limit), pytest.raises(DataError, match="cannot write"):
            noise(tmp_path / "short.mp4", 20)
        assert tree(tmp_path) == ["whole.mp4"]


def test_a_full_disk_ends_a_film_before_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.inference.video_files.ROOM_EVERY", 5)
    full = os.statvfs_result((4096, 4096, 100, 0, 0, 9, 9, 9, 0, 255))
    monkeypatch.setattr("utils.inference.video_files.os.statvfs", lambda _: full)
    written = []
    with pytest.raises(DataError, match="No space left"), \
            VideoWriter(str(tmp_path / "a.mp4"), 10) as writer:
        for frame in frames(8):
            writer.write(frame)
            written.append(frame)
    assert len(written) == 5 and not tree(tmp_path)


def test_a_film_with_a_missing_part_is_not_complete(tmp_path):
    noise(tmp_path / "a.mp4", 6)
    data = (tmp_path / "a.mp4").read_bytes()
    for cut in (data[:-1], data[:200] + data[900:], data[:40], b"", data[:-300] + bytes(300)):
        (tmp_path / "b.mp4").write_bytes(cut)
        assert frames_in_film(tmp_path / "b.mp4") != 6


def test_frames_of_another_size_are_missed(tmp_path):
    with pytest.raises(DataError, match="not all 2 frames"), \
            VideoWriter(str(tmp_path / "a.mp4"), 10) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
        writer.write(np.zeros((48, 80, 3), np.uint8))


def test_a_folder_that_vanishes_is_an_error_and_no_traceback(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="cannot write"), \
            VideoWriter(str(tmp_path / "out/a.mp4"), 10) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
        shutil.rmtree(tmp_path / "out")
