"""Evaluation protocols: the published ways of predicting and scoring, each under one name.

A score depends on how the image was resized, cut and mirrored, by half a point to several. A
protocol states all of it, so that "mmseg-ade20k" in a config or on the command line means what
mmsegmentation's test does. It is nothing but settings of the `predict` section (DETERMINED and a
few more): each of them can also be given alone.
"""
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

from utils.errors import ConfigError, unknown

# The settings that every protocol determines, at the values that a protocol need not write down.
DETERMINED: dict[str, Any] = {
    "mode": "whole", "scales": None, "scale_rounding": "floor", "flip": False, "crop_size": None,
    "overlap": 1 / 3, "tiling": "even", "stride": None, "average": "logits", "align_corners": False,
    "base_size": None, "input_size": None, "long_side": None, "multiple": 1, "fill": "stretch",
    "rounding": "nearest", "interpolation": "linear", "logits_interpolation": "linear",
    "input_crop": None, "scale_from": "input", "score_at": "label"}
_MMSEG_SCALES = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
_OPENSEG_SCALES = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]


class Protocol(NamedTuple):
    """One way of predicting and scoring.

    about: what it does and who uses it. datasets: the types of the datasets for which it was
    published; () if it is a general way. settings: of the `predict` section, beside DETERMINED.
    """

    about: str
    datasets: tuple[str, ...]
    settings: dict[str, Any]


def _scaled(scales, **settings):
    return {"mode": "multiscale", "scales": scales, **settings}


def _windows(crop, stride, tiling="fit", **settings):
    return {"mode": "sliding", "crop_size": [crop, crop], "tiling": tiling,
            **({"stride": stride} if stride else {}), **settings}


_ADE = {"input_size": 512, "long_side": 2048}
_OPENSEG = {"input_size": 520, "interpolation": "cubic", "logits_interpolation": "cubic",
            "align_corners": True}
_OPENSEG_ADE = {**_OPENSEG, "multiple": 8, "fill": "pad"}
_LIP = {**_OPENSEG, "input_size": [473, 473]}
_CENTER = {"rounding": "floor", "score_at": "input", "published": True}

PROTOCOLS: dict[str, Protocol] = {
    "whole": Protocol(
        "The whole image at its own size, one pass. This is the test of MIC-DKFZ (also of its "
        "multi-scale networks, whose scales are in the network), of PaddleSeg's CityscapesSOTA "
        "without flip, of openseg, HRNet and PIDNet on Cityscapes.",
        (), {}),
    "whole-flip": Protocol(
        "The whole image and its mirror image, mean of the logits. PaddleSeg's CityscapesSOTA with "
        "--flip (86.99).", (), {"flip": True}),
    "mmseg-ade20k": Protocol(
        "mmsegmentation, ADE20K: the short side is 512 pixels, the long side at most 2048, the "
        "ratio is kept; logits at the size of the label. SegFormer-B0 37.41, Swin-T UPerNet 44.41.",
        ("ADE20K",), _ADE),
    "mmseg-ade20k-640": Protocol(
        "mmsegmentation, ADE20K: short side 640, long side at most 2560. SegFormer-B5 49.62.",
        ("ADE20K",), {"input_size": 640, "long_side": 2560}),
    "mmseg-ade20k-multiple-32": Protocol(
        "As mmseg-ade20k, both sides then rounded up to a multiple of 32, which changes the ratio "
        "a little. SegFormer-B0 38.1.", ("ADE20K",), {**_ADE, "multiple": 32}),
    "mmseg-ade20k-ms": Protocol(
        "mmsegmentation's aug_test on ADE20K: scales 0.5 to 1.75 and mirror images, each made from "
        "the image, rounded up to a multiple of 32; mean of the probabilities at the size of the "
        "label. SegFormer-B0 38.57.", ("ADE20K",),
        _scaled(_MMSEG_SCALES, **_ADE, multiple=32, flip=True, scale_from="image",
                average="probs")),
    "mmseg-ade20k-slide": Protocol(
        "Windows of 512 every 341 pixels over an image of short side 512: mmsegmentation's "
        "ConvNeXt (T 46.11), and linear heads on DINOv2 and DINOv3.", ("ADE20K",),
        {**_windows(512, 341), **_ADE}),
    "mmseg-ade20k-slide-ms": Protocol(
        "As mmseg-ade20k-slide, at scales 0.5 to 1.75 and mirrored: logits averaged over windows, "
        "probabilities over scales. ConvNeXt-T UPerNet 46.62.", ("ADE20K",),
        {**_windows(512, 341, scales=_MMSEG_SCALES, flip=True, scale_from="image",
                    average="view_probs"), **_ADE}),
    "mmseg-ade20k-slide-640": Protocol(
        "mmsegmentation's large ConvNeXts on ADE20K: windows of 640 every 426 pixels over an image "
        "of short side 640, long side at most 2560. ConvNeXt-B UPerNet 52.13.", ("ADE20K",),
        {**_windows(640, 426), "input_size": 640, "long_side": 2560}),
    "mmseg-cityscapes-slide": Protocol(
        "mmsegmentation's SegFormer on Cityscapes: windows of 1024 every 768 pixels. B0 76.54.",
        ("CityScapes",), _windows(1024, 768)),
    "mmseg-cityscapes-slide-ms": Protocol(
        "As mmseg-cityscapes-slide, at scales 0.5 to 1.75 and mirrored: logits averaged over "
        "windows, probabilities over scales. SegFormer-B0 78.22.", ("CityScapes",),
        _windows(1024, 768, scales=_MMSEG_SCALES, flip=True, scale_from="image",
                 input_size=1024, long_side=2048, average="view_probs")),
    "mmseg-cityscapes-ms": Protocol(
        "mmsegmentation's aug_test of whole images on Cityscapes: scales 0.5 to 1.75 and mirror "
        "images, mean of the probabilities. DDRNet-23-slim 80.15.", ("CityScapes",),
        _scaled(_MMSEG_SCALES, flip=True, scale_from="image", input_size=1024, long_side=2048,
                average="probs")),
    "eomt-ade20k": Protocol(
        "EoMT, ADE20K: short side 512 (averaging resize), square windows spread evenly along the "
        "long side, mean of their scores. EoMT-L 58.4.", ("ADE20K",),
        _windows(512, None, "spread", input_size=512, interpolation="antialias")),
    "eomt-cityscapes": Protocol(
        "EoMT, Cityscapes: two windows of 1024. EoMT-L 84.2.", ("CityScapes",),
        _windows(1024, None, "spread", input_size=1024, interpolation="antialias")),
    "hrnet-ms": Protocol(
        "HRNet on Cityscapes with several scales (0.5 to 1.75) and mirror images: mean of the "
        "exponentials of the logits. Scales up to 1 in one pass, larger ones in windows of "
        "1024x2048 side by side, the last ones moved back inside.",
        ("CityScapes",), {"mode": "sliding", "crop_size": [1024, 2048], "stride": [1024, 2048],
                          "tiling": "fit", "scales": _MMSEG_SCALES, "scale_rounding": "nearest",
                          "flip": True, "average": "exp"}),
    "openseg-pascal-context": Protocol(
        "openseg, PASCAL-Context: short side 520, cubic; logits cubically enlarged to the label. "
        "OCR-W48 55.11.", ("VOC2010_Context",), _OPENSEG),
    "openseg-coco-stuff": Protocol(
        "openseg, COCO-Stuff 10k: short side 520, cubic; logits cubically enlarged. OCR-W48 39.61.",
        ("COCO",), _OPENSEG),
    "openseg-coco-stuff-ms": Protocol(
        "As openseg-coco-stuff, at scales 0.5 to 2 and mirrored. OCR-W48 40.20.", ("COCO",),
        _scaled(_OPENSEG_SCALES, **_OPENSEG, flip=True)),
    "openseg-ade20k": Protocol(
        "openseg, ADE20K: short side 520, cubic, padded to a multiple of 8; logits cubically "
        "enlarged to the label. OCR-W48 44.62.", ("ADE20K",), _OPENSEG_ADE),
    "openseg-ade20k-ms": Protocol(
        "As openseg-ade20k, at scales 0.5 to 2 of the padded input and mirrored. OCR-W48 46.19.",
        ("ADE20K",), _scaled(_OPENSEG_SCALES, **_OPENSEG_ADE, flip=True)),
    "openseg-lip": Protocol(
        "openseg, LIP: exactly 473x473 without keeping the ratio, with the mirror image, left and "
        "right parts exchanged. OCR-W48 56.72.", ("LIP",), {**_LIP, "flip": True}),
    "hoya012-ms": Protocol(
        "hoya012, MiniCity: scales 0.5 to 2.2 and mirror images with aligned corners, mean of the "
        "logits (0.607).", ("MiniCity",),
        _scaled([0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.2], flip=True, align_corners=True)),
    "hoya012-512x1024": Protocol(
        "hoya012's ResNet-101, MiniCity: images reduced to 512x1024 by Lanczos, the predicted "
        "classes enlarged by nearest.", ("MiniCity",),
        {"input_size": [512, 1024], "interpolation": "lanczos", "logits_interpolation": "nearest"}),
    "yassouali-ms": Protocol(
        "yassouali/pytorch-segmentation: scales 0.75 to 2, no mirror image, aligned corners, mean "
        "of the logits.", ("VOC", "ADE20K", "COCO"),
        _scaled([0.75, 1.0, 1.25, 1.5, 1.75, 2.0], scale_rounding="nearest", align_corners=True)),
    "yassouali-cityscapes-ms": Protocol(
        "yassouali/pytorch-segmentation on Cityscapes: scales 0.75 to 2.25.", ("CityScapes",),
        _scaled([0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25], scale_rounding="nearest",
                align_corners=True)),
    "yassouali-slide": Protocol(
        "yassouali/pytorch-segmentation, sliding: windows of 40 % of each side, mirrored, the "
        "last ones padded.", ("VOC", "CityScapes", "ADE20K", "COCO"),
        {"mode": "sliding", "tiling": "source", "flip": True}),
    "rankdice-cityscapes": Protocol(
        "RankDice (Dai & Li, JMLR 2023), Cityscapes: image and label reduced to a short side of "
        "512, the center of 512x512 scored, image-level means as published.", ("CityScapes",),
        {"input_size": 512, "input_crop": 512, **_CENTER}),
    "rankdice-voc": Protocol(
        "RankDice, PASCAL VOC: the center of 480x480, means over classes 1 to 20.", ("VOC",),
        {"input_size": 480, "input_crop": 480, "CoI": list(range(1, 21)), **_CENTER}),
    "rankdice-kvasir": Protocol(
        "RankDice, Kvasir-SEG: the center of 320x320, the polyp alone.", (),
        {"input_size": 320, "input_crop": 320, "CoI": [1], **_CENTER}),
}
GENERAL = ("whole", "whole-flip")       # those of `--protocol all` for every dataset


def protocol_section(protocol: str | None = None) -> None:
    """A published way of predicting under one name: train.py --list protocols.

    protocol: it sets the keys above that say how images are resized, cut, mirrored and averaged. A
    key that is given next to it goes before it, and results then say so.
    """


def settings_of(name: str, where: str = "predict.protocol") -> dict[str, Any]:
    """The keys of the `predict` section that a protocol sets, "protocol" included.

    Raises ConfigError for an unknown name.
    """
    if name not in PROTOCOLS:
        raise ConfigError(unknown("protocol", name, PROTOCOLS), where,
                          "train.py --list protocols explains each")
    return {**DETERMINED, **PROTOCOLS[name].settings, "protocol": name}


def expanded(section: Mapping[str, Any]) -> dict[str, Any]:
    """A `predict` section with the settings of its protocol, below those that it gives itself."""
    name = section.get("protocol")
    preset = settings_of(name) if isinstance(name, str) and name in PROTOCOLS else {}
    return {**preset, **section}


def changes(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from the protocol they name; {} without a protocol."""
    name = options.get("protocol")
    if name is None:
        return {}
    wanted = settings_of(name)
    return {key: options[key] for key, value in wanted.items()
            if key in options and _plain(options[key]) != _plain(value)}


def names_for(dataset: str) -> list[str]:
    """The protocols of `--protocol all` for data of this type: general and published ones."""
    return [name for name, one in PROTOCOLS.items()
            if dataset in one.datasets or name in GENERAL]


def protocols_text(word: str | None = None) -> str:
    """The text of `--list protocols [NAME]`: what each protocol does, and its settings.

    word: a name, or a part of names. Raises ConfigError if none contains it.
    """
    names = [name for name in PROTOCOLS if word is None or word.lower() in name]
    if not names:
        raise ConfigError(unknown("protocol", word or "", PROTOCOLS), "--list protocols")
    return "\n\n".join(map(_block, names))


def _block(name):
    about, datasets, settings = PROTOCOLS[name]
    lines = textwrap.wrap(about, 92)
    lines += [f"data: {', '.join(datasets) if datasets else 'any'}"]
    text = ", ".join(f"{key} {_plain(value)}" for key, value in settings.items())
    lines += textwrap.wrap(f"predict: {text or 'nothing else'}", 92, subsequent_indent="  ")
    return "\n".join([name, *(f"  {line}" for line in lines)])


def _plain(value):
    """Tuples as lists, and numbers alike whether they are whole or not."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole else value
