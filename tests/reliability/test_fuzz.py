"""Mutated configs, checkpoints, pictures, list files, results and logs.

No mutation may cause a traceback, a hang or a crash of the interpreter; a failure must be one
message of a UserError. Hypothesis draws the mutations (the same ones for the same seed) and
searches for the simplest one that fails. By default a few of each kind are tried; FUZZ=full tries
the numbers of docs/faults.md, FUZZ_SEED=n other mutations.
"""
import copy
import functools
import io
import json
import os
import pickle
import re
import resource
import signal
import struct
import tempfile
import warnings
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

import inference
import test as test_program
import train
from tests.config.samples import places_in
from utils.cli import console
from utils.config.registry import KINDS, components
from utils.errors import DataError
from utils.images.headers import read_header
from utils.images.image_io import read_image, read_label, read_pair, read_stored, write_image
from utils.training.run_log import RunLogger

FULL = os.environ.get("FUZZ") == "full"
SEED = int(os.environ.get("FUZZ_SEED", 0))
PATIENCE = 3         # seconds before a training that a mutation made long gets SIGTERM
LONGEST = 60         # seconds after SIGTERM before it counts as hanging
MEMORY = 6e9         # bytes of data a program may add: a config may need more than there is


def mutations(few, many):
    """Decorator: run a test many times with `draw`, a random.Random that Hypothesis controls."""
    several = settings(max_examples=many if FULL else few, deadline=None, database=None,
                       suppress_health_check=list(HealthCheck), report_multiple_bugs=False)
    draws = given(draw=st.randoms(note_method_calls=True, use_true_random=False))
    return lambda test: seed(SEED)(several(draws(test)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(config file, bytes of a checkpoint, its contents) of a training without mutations."""
    folder = tmp_path_factory.mktemp("trained")
    config = folder / "config.json"
    config.write_text(json.dumps(config_files()[0]))
    assert console.run(train.main, ["-c", str(config), "-d", "cpu",
                                    f"trainer.save_dir={folder}"]) == 0
    last, = folder.glob("fuzz/*/last.pth")
    return config, last.read_bytes(), torch.load(last)


def judged(capfd, main, *arguments):
    """Run an entry point. It must end by itself or on SIGTERM; a failure must be one message."""
    capfd.readouterr()
    with hurried(), bounded():
        try:
            status = console.run(main, list(map(str, arguments)))
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}") from error
        finally:
            # SIGTERM may have interrupted the exit from a no_grad block; only the next program
            # in this process would notice.
            torch.set_grad_enabled(True)
    message = capfd.readouterr().err
    assert status in (0, 1, 2, 3, 4, 5, 143), f"status {status}"
    assert "Traceback" not in message, message
    assert message.count("error: ") == (status not in (0, 143)), message
    # Status 1 is for unexpected errors; here it is allowed only if memory runs out.
    assert status != 1 or "out of memory" in message, message


@contextmanager
def hurried():
    """Send SIGTERM after PATIENCE, as a user would; raise TimeoutError after LONGEST."""
    sent = []

    def alarm(*_):
        if sent:
            raise TimeoutError("hangs")
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.alarm(1)         # no handler is installed yet, or any more
            return
        sent.append(True)
        signal.alarm(LONGEST)
        os.kill(os.getpid(), signal.SIGTERM)

    previous = signal.signal(signal.SIGALRM, alarm)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@contextmanager
def bounded():
    """Limit the memory that is added to MEMORY; else the system would kill some process."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_data_of_this_process() + int(MEMORY), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)


def _data_of_this_process():
    """Bytes that count against the limit: earlier tests may have left gigabytes to the process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"^VmData:\s+(\d+)", status, re.MULTILINE)[1])


# --- configs ---

VALUES = [None, True, False, 0, 1, -1, 2, 3, 7, 255, 256, 10 ** 6, 2 ** 31, 2 ** 63, 10 ** 30, 0.5,
          -0.5, 1e-300, 1e300, 1.0, "", "0.01", "max", "auto", "../x", "/", "\0", "a" * 5000,
          "\ud800", "ünï", "${HOME}", "${NOT_SET}", [], [0], [1, 2], [[[]]], ["a", None], {},
          {"type": "x"}, {"a": {"b": 1}}, {"type": "ENet", "args": {}}, {"type": None},
          [{"type": "CrossEntropyLoss2d"}], "ENet", "Shapes", "CrossEntropyLoss2d"]
PIECES = ["{", "}", "[", "]", ",", ":", '"', "//", "/*", "*/", "\\", "\n", "null", "NaN", "1e999",
          "\u0000", "\ufeff", "'", "[" * 200, "-", "0x1", '"type":', '"extends": "config.json",']


def config_files():
    """Configs that train in a second and use many features."""
    small = {"name": "fuzz", "seed": 1, "arch": {"type": "ENet"},
             "train_loader": {"type": "Shapes", "args": {
                 "split": "train", "length": 4, "size": [32, 48], "batch_size": 2, "shuffle": True,
                 "num_workers": 0, "augment": True, "scale": [0.8, 1.3], "flip": True,
                 "crop_size": [32, 32], "batch_transforms": [{"type": "CutMix", "args": {}}]}},
             "val_loader": {"type": "Shapes", "args": {
                 "split": "val", "length": 2, "size": [32, 48], "batch_size": 2,
                 "num_workers": 0}},
             "optimizer": {"type": "AdamW", "args": {"lr": 4e-3, "weight_decay": 1e-2}},
             "lr_scheduler": {"type": "OneCycle"},
             "loss": {"type": "CrossEntropyLoss2d", "args": {"weight": [1] * 9}},
             "predict": {"CoI": [0, 1], "val": "max"},
             "trainer": {"epochs": 1, "val_per_epochs": 1, "tensorboard": False,
                         "monitor": "max Mean_IoU", "log_per_iter": 1}}
    mixed = {**small, "lr_scheduler": {"type": "Poly"}, "arch": {"type": "ENet", "args": {}},
             "optimizer": {"type": "SGD", "args": {"lr": 0.01, "momentum": 0.9}},
             "loss": [{"type": "MixedLoss", "args": {"losses": [
                 {"type": "CrossEntropyLoss2d"}, {"type": "DiceLoss"}]}}],
             "loss_weights": [1.0], "ignore_index": 255,
             "predict": {"train": "max", "val": "rankdice", "test": "max"},
             "trainer": {**small["trainer"], "epochs": None, "iterations": 2, "ema": 0.9,
                         "accumulate": 2, "clip_grad_norm": 1.0, "save_period": 1, "keep": 1,
                         "early_stop": 3, "nonfinite": "skip"}}
    return [small, mixed]


def mutated_config(draw):
    """The bytes of a config with one to three mutations of its values or its text."""
    config = copy.deepcopy(draw.choice(config_files()))
    for _ in range(draw.choice([1, 1, 1, 2])):
        inner = [path for path in places_in(config) if path]
        if not inner:
            break
        path = draw.choice(inner)
        holder = config
        for key in path[:-1]:
            holder = holder[key]
        action = draw.choice(["near"] * 8 + ["value", "value", "delete", "rename", "add", "add",
                                             "component", "move"])
        if action == "near":
            holder[path[-1]] = _near(holder[path[-1]], draw)
        elif action == "value" or isinstance(holder, list):
            holder[path[-1]] = copy.deepcopy(draw.choice(VALUES))
        elif action == "delete":
            del holder[path[-1]]
        elif action == "rename":
            key = draw.choice([path[-1][:-1], path[-1] + "s", path[-1].upper(), ""])
            holder[key] = holder.pop(path[-1])
        elif action == "add":
            holder[draw.choice(["", "type", "args", "lr", "x", "crop_size", "amp", "on_corrupt",
                                "base_size", "freeze_bn", "label_map", "timeout", "flip_pairs",
                                "sampler", "batch_transforms", "weight"])] = \
                copy.deepcopy(draw.choice(VALUES))
        elif action == "component":
            kind = draw.choice(sorted(KINDS))
            holder[path[-1]] = draw.choice([name := draw.choice(sorted(components(kind))),
                                            {"type": name, "args": {}}])
        elif action == "move":
            other = draw.choice(inner)
            value = config
            for key in other:
                value = value[key] if isinstance(value, (dict, list)) and key in (
                    value if isinstance(value, dict) else range(len(value))) else None
            holder[path[-1]] = copy.deepcopy(value)
    text = json.dumps(config, indent=draw.choice([None, 1]))
    for _ in range(draw.choice([0, 0, 0, 0, 0, 1])):
        at = draw.randrange(len(text) + 1)
        text = draw.choice([text[:at] + draw.choice(PIECES) + text[at:], text[:at],
                            text[:at] + text[at + draw.randint(1, 30):]])
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    if draw.random() < 0.05 and data:
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


@mutations(25, 2000)
@pytest.mark.timeout(3000)
def test_a_mutated_config_trains_or_is_one_message(draw, trained, tmp_path, capfd):
    """Each config that passes the checks is trained for two steps: 10 s."""
    path = tmp_path / "c.json"
    path.write_bytes(mutated_config(draw))
    judged(capfd, train.main, "-c", path, "-d", "cpu", f"trainer.save_dir={tmp_path / 'saved'}")


def _near(value, draw):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice([-1, 0, 1, 2, 3, 17, 100, 254, 255, 4096, 2 ** 31, 2 ** 63, 10 ** 30])
    if isinstance(value, float):
        return draw.choice([-1.0, 0.0, 1.0, 0.5, 2.0, 1e-30, 1e30, 1e308, 5e-324])
    if isinstance(value, str):
        return draw.choice(["min loss", "off", "test", "train", value + "x", value[:-1],
                            *sorted(components(draw.choice(sorted(KINDS))))])
    if isinstance(value, list):
        return draw.choice([value[:-1], value * 2, value[::-1], [value], []])
    if not isinstance(value, dict):
        return copy.deepcopy(draw.choice(VALUES))
    return draw.choice([{}, {**value, "x": 1}, dict(list(value.items())[:-1])])


# --- checkpoints ---

def mutated_checkpoint(content, state, draw):
    """The bytes of a checkpoint with a mutation of its bytes, its pickle or its values."""
    kind = draw.choice(["bytes", "record", "record", "record", "value", "value", "value",
                        "old format", "preamble"])
    if kind == "bytes":
        return mutated_bytes(content, draw)
    if kind == "preamble":      # a zip archive is found from its end
        before = draw.choice([b"\x80\x02", b"PK\x03\x04", draw.randbytes(draw.randint(1, 40))])
        return before + draw.choice([content, mutated_bytes(content, draw)])
    if kind == "old format":
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=False)
        return mutated_bytes(buffer.getvalue(), draw)
    if kind == "record":
        return _mutated_archive(content, draw)
    state = copy.deepcopy(state)
    for _ in range(draw.choice([1, 1, 2])):
        path = draw.choice([path for path in places_in(state) if path])
        # Without this the top entries would rarely be drawn: the optimizer has many more.
        path = path[:draw.randint(1, len(path))]
        holder = state
        for key in path[:-1]:
            holder = holder[key]
        if draw.random() < 0.25 and isinstance(holder, dict):
            del holder[path[-1]]
        else:
            holder[path[-1]] = _other_value(holder[path[-1]], draw)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.mark.slow
@mutations(25, 500)
@pytest.mark.timeout(3000)
def test_a_mutated_checkpoint_is_used_or_refused_in_one_message(draw, trained, tmp_path, capfd):
    """With every program that opens checkpoints: 10 s."""
    config, content, state = trained
    write_image(tmp_path / "a.png", np.zeros((32, 48, 3), np.uint8))
    (tmp_path / "run").mkdir(exist_ok=True)
    path = tmp_path / "run" / "last.pth"
    path.write_bytes(mutated_checkpoint(content, state, draw))
    saves = f"trainer.save_dir={tmp_path / 'saved'}"
    main, *arguments = draw.choice([
        (train.main, "-r", path, "trainer.epochs=2", "--resume-allow-changes", saves),
        (train.main, "-c", config, "-r", path, "trainer.epochs=2", saves),
        (train.main, "-c", config, f"trainer.finetune_from={path}", saves),
        (inference.main, "-r", path, "-i", tmp_path / "a.png", "-o", tmp_path / "out"),
        (test_program.main, "-r", path, "-o", tmp_path / "out", "-s", "val")])
    judged(capfd, main, "-d", "cpu", *arguments)


@pytest.mark.slow
@mutations(25, 500)
@pytest.mark.timeout(3000)
def test_a_mutated_pdparams_file_is_used_or_refused_in_one_message(draw, trained, tmp_path, capfd):
    """With training and inference: 5 s."""
    config, _, state = trained
    arrays = {key: value.numpy() for key, value in state["model"].items()}
    path = tmp_path / "model.pdparams"
    path.write_bytes(mutated_bytes(pickle.dumps(arrays, draw.choice([2, 3, 4])), draw))
    write_image(tmp_path / "a.png", np.zeros((32, 48, 3), np.uint8))
    main, *arguments = draw.choice([
        (train.main, "-c", config, "--dry-run", f"trainer.finetune_from={path}",
         f"trainer.save_dir={tmp_path / 'saved'}"),
        (inference.main, "-c", config, "-r", path, "-i", tmp_path / "a.png", "-o",
         tmp_path / "out")])
    judged(capfd, main, "-d", "cpu", *arguments)


def _other_value(value, draw):
    if isinstance(value, torch.Tensor) and draw.random() < 0.7:
        return draw.choice([value * float("nan"), value.double(), value.to(torch.int8),
                            value.flatten()[:0], value[None],
                            torch.zeros(()).expand(10 ** 5, 10 ** 6),
                            value.to(torch.complex64), torch.zeros(3).to_sparse(),
                            torch.empty(2, device="meta"), torch.zeros(4).requires_grad_()])
    if isinstance(value, (bool, int, float, str)) and draw.random() < 0.5:
        return _near(value, draw)
    return copy.deepcopy(draw.choice([*VALUES, torch.zeros(2), {1: 2}, (1, 2), float("nan"), b"x",
                                      {"params": []}, [{"params": [0]}]]))


def _mutated_archive(content, draw):
    """The zip with one record changed, missing or duplicated, and with correct checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    number = draw.randrange(len(records))
    if draw.random() < 0.7:
        number = next(i for i, (name, _) in enumerate(records) if name.endswith("data.pkl"))
    name, data = records[number]
    action = draw.choice(["change"] * 8 + ["drop", "twice", "rename", "grow"])
    if action == "change":
        records[number] = name, mutated_bytes(data, draw)
    elif action == "drop":
        del records[number]
    elif action == "twice":
        records.append((name, mutated_bytes(data, draw)))
    elif action == "rename":
        records[number] = draw.choice(["../../x", "/x", name + "/", name[:-1]]), data
    else:
        records[number] = name, data + b"\0" * 100_000
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")            # zipfile warns about a duplicate name
        for name, data in records:
            archive.writestr(name, data)
    return buffer.getvalue()


def mutated_bytes(data, draw):
    """Bytes changed, removed or duplicated, most often near the beginning."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        if not data:
            break
        near = int(len(data) * draw.random() ** 3)
        at = near if draw.random() < 0.7 else draw.randrange(len(data))
        action = draw.random()
        if action < 0.4:
            data[at] = draw.choice([0, 1, 0x7f, 0x80, 0xff, draw.randrange(256)])
        elif action < 0.6:
            data[at:at + 4] = draw.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff",
                                           b"\0\0\x40\0"])
        elif action < 0.7:
            del data[at:at + draw.randint(1, 20)]
        elif action < 0.8:
            data[at:at] = draw.randbytes(draw.randint(1, 20))
        elif action < 0.9:
            del data[at:]
        else:
            start = draw.randrange(len(data))
            data[at:at] = data[start:start + draw.randint(1, 60)]
    return bytes(data)


# --- pictures ---

@functools.lru_cache
def pictures():
    """The bytes of one picture of every kind."""
    rng = np.random.default_rng(0)
    rgb = np.kron(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8), np.ones((6, 7, 1), np.uint8))
    gray, wide = rgb[..., 0] % 19, rgb[..., 0].astype(np.uint16) * 200
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = Image.fromarray(gray).convert("P")
    cmyk, twelve_bits = Image.fromarray(rgb).convert("CMYK"), (wide >> 4).astype(np.uint16)
    pages = {"save_all": True, "append_images": [Image.fromarray(gray)]}
    kinds = [(rgb, "TIFF", pages), (twelve_bits, "PNG", {}), (twelve_bits, "TIFF", {}),
             (cmyk, "TIFF", {}), (np.dstack([rgb, gray]), "TIFF", {}),
             (rgb.astype(np.float32)[..., 0], "TIFF", {}), (rgb, "PNG", {}),
             (rgb, "JPEG", {}), (rgb, "JPEG", {"progressive": True}),
             (rgb, "WEBP", {}), (rgb, "WEBP", {"lossless": True}), (rgb, "GIF", {}),
             (rgb, "BMP", {}), (rgb, "PPM", {}), (rgb, "TIFF", {}),
             *((rgb, "TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate",
                                                                 "jpeg")),
             (gray > 9, "TIFF", {"compression": "group4"}), (wide, "TIFF", {}), (wide, "PNG", {}),
             (palette, "PNG", {}), (gray, "PNG", {}), (gray > 9, "PNG", {}),
             (np.dstack([rgb, gray]), "PNG", {}),
             (cmyk, "JPEG", {}), (rgb, "JPEG", {"exif": exif}),
             (rgb, "PNG", {"exif": exif}), (rgb, "WEBP", {"exif": exif}),
             (rgb, "GIF", {"save_all": True, "append_images": [Image.fromarray(255 - rgb)]})]
    files = []
    for picture, kind, options in kinds:
        buffer = io.BytesIO()
        picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        picture.save(buffer, kind, **options)
        files.append(buffer.getvalue())
    # A palette of fewer colors than the picture uses.
    colored = next(data for data in files if b"PLTE" in data)
    start, end = (colored.index(name) - 4 for name in (b"PLTE", b"IDAT"))
    short = colored[start + 4:start + 8 + 3 * 4]
    short = struct.pack(">I", 3 * 4) + short + struct.pack(">I", zlib.crc32(short))
    return [colored[:start] + short + colored[end:], *files]


def with_checksums(data):
    """A mutated PNG with correct checksums, so that the mutation reaches the decoder."""
    fixed, place = bytearray(data[:8]), 8
    while place + 12 <= len(data):
        length, = struct.unpack(">I", data[place:place + 4])
        if place + 12 + length > len(data):
            break
        body = data[place + 4:place + 8 + length]
        fixed += data[place:place + 4] + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return bytes(fixed) + data[place:]


GRAYS = [[k, k, k] for k in range(200)]


@mutations(100, 5000)
@pytest.mark.timeout(600)
def test_a_mutated_picture_or_label_is_read_or_a_data_error(draw, tmp_path, capfd):
    """All formats: 4 s of decoding."""
    path, sound = tmp_path / "a.png", tmp_path / "sound.png"
    sound.write_bytes(pictures()[-8])
    content = mutated_bytes(draw.choice(pictures()), draw)
    if draw.random() < 0.5 and content.startswith(b"\x89PNG"):
        content = with_checksums(content)
    path.write_bytes(content)
    for read in (read_image, read_header, read_label, read_stored,
                 lambda path: read_label(path, GRAYS), lambda path: read_pair(sound, path),
                 lambda path: read_pair(path, sound)):
        with hurried(), warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                read(path)
            except DataError as error:
                assert error.what and error.where
            except Exception as error:
                raise AssertionError(repr(error)) from error
    assert "Traceback" not in capfd.readouterr().err


# --- lists, results and logs ---

@mutations(25, 500)
@pytest.mark.timeout(3000)
def test_a_mutated_list_file_is_used_or_refused_in_one_message(draw, tmp_path, capfd):
    """The checks before a training: 5 s."""
    for number in range(4):
        for kind in ("images", "labels"):
            folder = tmp_path / "data" / kind
            folder.mkdir(parents=True, exist_ok=True)
            write_image(folder / f"{number}.png", np.full((32, 48, 3), number, np.uint8))
    names = ["0", "1\n2", "images/0.png labels/0.png", "images\\1.png labels\\1.png", "3\r\n",
             "\ufeff0", "# text", "../0", "/etc/passwd", "images/0.png\tlabels/9.png", " ", "0 1 2"]
    text = "\n".join(draw.choice(names) for _ in range(draw.randint(1, 5)))
    list_file = tmp_path / "list.txt"
    list_file.write_bytes(draw.choice([bytes, lambda data: mutated_bytes(data, draw)])(
        text.encode(draw.choice(["utf-8", "utf-16", "utf-8"]))))
    config = copy.deepcopy(config_files()[0])
    config["train_loader"] = {"type": "Folder", "args": {
        "data_dir": str(tmp_path / "data"), "split": "train", "list_file": str(list_file),
        "num_classes": 9, "batch_size": 2, "crop_size": 32, "num_workers": 0}}
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**config, "val_loader": None, "trainer": {
        **config["trainer"], "val": False, "monitor": "off"}}))
    judged(capfd, train.main, "-c", path, "-d", "cpu", f"trainer.save_dir={tmp_path / 'saved'}")


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory):
    """(arguments of an evaluation without its output folder, the files that it writes)."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "last.pth").write_bytes(trained[1])
    evaluate = ["-r", str(folder / "last.pth"), "-s", "val", "-d", "cpu", "-o"]
    assert console.run(test_program.main, [*evaluate, str(folder / "out")]) == 0
    return evaluate, {name: (folder / "out" / name).read_bytes()
                      for name in ("results.json", "results.txt")}


@pytest.mark.slow
@mutations(5, 500)
@pytest.mark.timeout(3000)
def test_scores_are_added_to_mutated_results_or_it_is_one_message(draw, scored, tmp_path, capfd):
    """Each evaluates two small pictures: 5 s."""
    evaluate, files = scored
    folder = Path(tempfile.mkdtemp(dir=tmp_path))       # a number that is drawn comes again
    name = draw.choice(["results.json", "results.json", "results.txt"])
    for other, content in files.items():
        (folder / other).write_bytes(mutated_bytes(content, draw) if other == name else content)
    judged(capfd, test_program.main, *evaluate, folder)


@mutations(100, 5000)
@pytest.mark.timeout(600)
def test_a_mutated_log_never_ends_a_training_and_loses_no_entry(draw, tmp_path, capfd):
    """metrics.jsonl at a resume: 1 s."""
    entries = [json.dumps({"kind": "train", "step": step, "loss": 0.5}) for step in range(1, 6)]
    whole = "".join(f"{entry}\n" for entry in entries).encode()
    path, aside = tmp_path / "metrics.jsonl", tmp_path / "metrics.jsonl.unreadable"
    aside.unlink(missing_ok=True)
    path.write_bytes(mutated_bytes(whole, draw))
    given = [line for line in path.read_bytes().splitlines() if line.strip()]
    log = RunLogger(tmp_path, tensorboard=False, first_step=10 ** 40)
    log.record("train", 6)
    kept = path.read_bytes().splitlines()
    assert [json.loads(line)["step"] for line in kept][-1] == 6
    moved = aside.read_bytes().splitlines() if aside.exists() else []
    assert sorted([*kept[:-1], *moved]) == sorted(given)
    assert "Traceback" not in capfd.readouterr().err
