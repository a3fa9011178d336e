"""Score files of any program: what is read, what is refused, and what is said."""
import os
import zipfile

import numpy as np
import pytest
import torch

from utils.decision.score_files import ScoreReader, read_label_array
from utils.decision.stored_scores import stored_form, write_probabilities
from utils.errors import DataError

PROBS = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(0)).softmax(0)
FORMS = {
    "ours.npz": lambda path: write_probabilities(path, stored_form(PROBS.clone()), list("abcd"),
                                                 [[k, 0, 0] for k in range(4)], "softmax"),
    "ours8.npz": lambda path: np.savez(path, class_names=list("abcd"),
                                       probabilities=stored_form(PROBS.clone(), "uint8")),
    "nnunet2.npz": lambda path: np.savez_compressed(path, probabilities=PROBS[:, None].numpy()),
    "nnunet1.npz": lambda path: np.savez_compressed(path, softmax=PROBS.half()[:, None].numpy()),
    "plain.npy": lambda path: np.save(path, PROBS.numpy()),
    "batch.npy": lambda path: np.save(path, PROBS[None].double().numpy()),
    "last.npy": lambda path: np.save(path, PROBS.permute(1, 2, 0).numpy()),
    "fortran.npy": lambda path: np.save(path, np.asfortranarray(PROBS.numpy().astype(">f4"))),
    "partial.npy": lambda path: np.save(path, 0.3 * PROBS.numpy()),
    "logits.npy": lambda path: np.save(path, PROBS.log().numpy() + 2)}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("classes", [4, None])
def test_the_probabilities_of_every_layout_are_the_same(tmp_path, name, classes):
    FORMS[name](tmp_path / name)
    known = name.startswith("ours") or classes or name not in ("partial.npy", "logits.npy")
    reader = ScoreReader(classes, axes="auto" if known else "CHW")
    found = reader.read(tmp_path / name).logits().softmax(1)[0]
    assert found.shape == PROBS.shape
    tolerance = 2 / 255 if name == "ours8.npz" else 1e-3
    assert (found - PROBS).abs().max() <= tolerance


def test_our_files_bring_names_and_colors(tmp_path):
    FORMS["ours.npz"](tmp_path / "a.npz")
    found = ScoreReader().read(tmp_path / "a.npz")
    assert (found.class_names, found.palette[3], found.activation) == (list("abcd"), [3, 0, 0],
                                                                       "softmax")


def npy(header, content=b"", version=b"\x01\x00"):
    size = len(header).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + size + header.encode() + content


def bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("probabilities.npy", npy(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 90000, 90000), }\n",
            bytes(1 << 20)))


def cut(path):
    FORMS["ours.npz"](path)
    os.truncate(path, 300)


def encrypted(path):
    """A password flag in both headers of the archive; the content does not matter."""
    FORMS["ours.npz"](path)
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(signature)
        while at >= 0:
            content[at + flags] |= 1
            at = content.find(signature, at + 1)
    path.write_bytes(bytes(content))


BAD = {
    "object.npz": (lambda path: np.savez(path, probabilities=np.array([{}], object)),
                   "never unpickled"),
    "nan.npy": (lambda path: np.save(path, np.where(PROBS > 0.5, np.nan, PROBS)),
                "are not finite"),
    "classes.npy": (lambda path: np.save(path, PROBS[:3].numpy()), "has 3 classes, expected 4"),
    "volumes.npy": (lambda path: np.save(path, PROBS[None, :, None].expand(2, 4, 3, 5, 7).numpy()),
                    "or a volume"),
    "labels.npy": (lambda path: np.save(path, PROBS.argmax(0).numpy()), "which are not scores"),
    "two.npz": (lambda path: np.savez(path, a=PROBS, b=PROBS), "has 2 arrays"),
    "empty.npy": (lambda path: np.save(path, np.zeros((4, 0, 7), np.float32)), "is empty"),
    "scaled.npy": (lambda path: np.save(path, 3 * PROBS.numpy()), "not clear what they are"),
    "sigmoid.npy": (lambda path: np.save(path, np.full((4, 5, 7), 0.5, np.float32)),
                    "not clear what they are"),
    "truncated.npz": (cut, "truncated"), "bomb.npz": (bomb, "its header claims"),
    "bomb.npy": (lambda path: path.write_bytes(npy(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 90000, 90000), }\n")),
        "its header claims"),
    "deep.npy": (lambda path: path.write_bytes(npy("(" * 5000, version=b"\x02\x00")), "damaged"),
    "pickle.npy": (lambda path: path.write_bytes(b"\x80\x04cos\nsystem\n."), "damaged"),
    "pipe.npy": (os.mkfifo, "is not a regular file"),
    "pipe.npz": (os.mkfifo, "is not a regular file"),
    "encrypted.npz": (encrypted, "is encrypted"),
    "names.npz": (lambda path: np.savez(path, class_names=list("abc"), probabilities=PROBS.numpy()),
                  "has 3 class names and scores of 4 classes"),
    "none.npz": (lambda path: path.write_bytes(b""), "damaged"),
    "order.npz": (lambda path: write_probabilities(path, PROBS.half().numpy(), list("acbd"),
                                                   [[0, 0, 0]] * 4, "softmax"), "order")}


@pytest.mark.parametrize("last", [False, True])
def test_a_volume_is_read_with_its_slices(tmp_path, last):
    volume = PROBS[:, None].repeat(1, 3, 1, 1)
    np.save(tmp_path / "v.npy", (volume.movedim(0, -1) if last else volume).numpy())
    reader = ScoreReader(4)
    assert reader.holds_volume(tmp_path / "v.npy")
    assert torch.equal(reader.read(tmp_path / "v.npy").values, volume.float())
    np.savez(tmp_path / "one.npz", probabilities=volume[:, :1].numpy())
    assert not reader.holds_volume(tmp_path / "one.npz")


@pytest.mark.parametrize("axes", ["auto", "CHW"])
def test_a_volume_of_one_class_keeps_its_slices(tmp_path, axes):
    np.save(tmp_path / "v.npy", PROBS[None].numpy())
    reader = ScoreReader(1, "sigmoid", axes=axes)
    assert reader.holds_volume(tmp_path / "v.npy")
    assert reader.read(tmp_path / "v.npy").values.shape == (1, 4, 5, 7)
    with pytest.raises(DataError, match="a single class or a single image"):
        ScoreReader(None, "sigmoid", axes=axes).read(tmp_path / "v.npy")
    assert ScoreReader(4, "sigmoid").read(tmp_path / "v.npy").values.shape == (4, 5, 7)


@pytest.mark.parametrize("labels, text", [
    (np.zeros((2, 3), np.float32), "expected labels"), (np.full((1, 2, 3), -1), "from -1 to -1"),
    (np.full((1, 2, 3), 70000), "to 70000"), (np.array([None]), "never unpickled")])
def test_a_label_volume_holds_small_integers(tmp_path, labels, text):
    np.save(tmp_path / "x.npy", labels)
    with pytest.raises(DataError, match=text):
        read_label_array(tmp_path / "x.npy")


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_one_line_with_the_file(tmp_path, name):
    write, text = BAD[name]
    write(tmp_path / name)
    reader = ScoreReader(4, class_names=list("abcd"))
    reader.holds_volume(tmp_path / name)        # no error, and no waiting
    with pytest.raises(DataError, match=text) as raised:
        reader.read(tmp_path / name)
    assert raised.value.where == str(tmp_path / name)
    assert len(raised.value.in_one_line.splitlines()) == 1


def test_an_option_says_what_is_not_clear(tmp_path):
    np.save(tmp_path / "a.npy", np.full((4, 4, 4), 0.5, np.float32))
    path = tmp_path / "a.npy"
    with pytest.raises(DataError, match="--axes"):
        ScoreReader(4, values="logits").read(path)
    as_logits = ScoreReader(4, axes="CHW", values="logits").read(path)
    divided = ScoreReader(4, axes="CHW", values="probabilities").read(path)
    assert torch.equal(as_logits.logits().softmax(1), divided.logits().softmax(1))
    single = ScoreReader(4, activation="sigmoid", axes="HWC").read(path)
    assert torch.equal(single.logits().sigmoid(), single.values[None])


def test_what_was_done_is_said_once_with_numbers(tmp_path, capsys):
    for name in ("partial.npy", "logits.npy"):
        for number in range(2):
            FORMS[name](tmp_path / f"{number}{name}")
    reader = ScoreReader(4, activation="softmax")
    for path in sorted(tmp_path.iterdir()):
        reader.read(path)
    reader.tell()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("2 files with logits, with values from -")
    assert lines[1] == ("2 files with scores that sum to 0.3 .. 0.3 in a pixel, each divided by "
                        "the sum")


def test_a_pixel_without_any_score_has_equal_classes(tmp_path, capsys):
    probs = PROBS.clone()
    probs[:, 2, 3] = 0
    np.save(tmp_path / "a.npy", probs.numpy())
    reader = ScoreReader(4)
    assert torch.allclose(reader.read(tmp_path / "a.npy").logits().softmax(1)[0, :, 2, 3],
                          torch.full((4,), 0.25))
    reader.tell()
    assert "1 of 35 pixels whose scores are all 0" in capsys.readouterr().err
