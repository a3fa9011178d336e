"""The text of `--list backbones timm [WORD]`: encoders of timm, and which networks take them."""
import contextlib
import io

import torch

from models.backbones.timm_adapter import import_timm, plan
from utils.config.build import build
from utils.config.registry import components
from utils.config.signature import parameters
from utils.errors import ConfigError, UserError, first_line, nearest

MOST_TRIED = 10         # families of which --list tries an encoder; one takes about two seconds
_SMALL = ("atto", "femto", "pico", "nano", "tiny", "mini", "small", "xs", "_s", "18", "b0", "base")


def timm_text(word: str | None = None) -> str:
    """Return the families of timm's encoders, those with `word`, or all about the one so called.

    A family is a module of timm. If at most MOST_TRIED have the word in their name or that of an
    encoder, a small encoder of each is tried, without computing anything. Raises ConfigError if
    timm is missing, and if no name contains the word.
    """
    timm = import_timm("timm/NAME")
    word = (word or "").removeprefix("timm/").lower()
    known = timm.list_models()
    if word.partition(".")[0] in known:
        return _one(f"timm/{word}")
    found: dict[str, list[str]] = {}
    for name in known:
        family = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        if word in f"{name} {family}":
            found.setdefault(family, []).append(name)
    if not found:
        near = nearest(word, known)
        raise ConfigError(f"no encoder of timm has {word!r} in its name"
                          + (f". Did you mean {near!r}?" if near else ""), "--list backbones timm")
    tried = len(found) <= MOST_TRIED
    rows = [["family", "names", *(["tried", "strides", "images"] if tried else ["for example"])]]
    for family, names in sorted(found.items()):
        small = _small(names)
        rows.append([family, str(len(names)), small, *(_kind(small) if tried else ())])
    lines = [f"timm {timm.__version__}: backbone timm/NAME", *_columns(rows)]
    if word:
        lines += ["", *(name for names in found.values() for name in names)]
    return "\n".join([*lines, "", "--list backbones timm WORD: only names with this word; "
                      "NAME: which networks take this encoder"])


def _one(name):
    """What one encoder gives, and which networks with a backbone take it."""
    found = plan(name)
    strides, images = _kind(name.removeprefix("timm/"))
    mean, std = (found.normalization[key] for key in ("mean", "std"))
    taken: dict[str, list[str]] = {}
    for kind, cls in components("models").items():
        if kind == cls.__name__ and "backbone" in parameters(cls):
            taken.setdefault(_answer(kind, cls, name), []).append(kind)
    rows = [["strides", strides], ["channels", " ".join(map(str, found.channels))],
            ["images", images], ["normalize", f"mean {list(mean)}, std {list(std)}"]]
    answers = [f"{answer}: {', '.join(kinds)}" for answer, kinds in sorted(
        taken.items(), key=lambda item: item[0].startswith("refused"))]
    return "\n".join([name, *(f"  {line}" for line in [*_columns(rows), *answers])])


def _answer(kind, cls, name):
    """Whether a network takes an encoder, perhaps with another output stride, or the error."""
    try:
        _try(kind, backbone=name)
        return "taken by"
    except UserError as error:
        problem = first_line(error)
    if "output_stride" in parameters(cls):
        with contextlib.suppress(UserError):
            _try(kind, backbone=name, output_stride=32)
            return "taken with arch.args.output_stride 32 by"
    return f"refused ({problem}) by"


def _try(kind, **args):
    """Build a network without memory for its weights, and without its notices."""
    with torch.device("meta"), contextlib.redirect_stderr(io.StringIO()):
        build("models", {"type": kind, "args": args}, num_classes=2)


def _kind(name):
    """(the strides of the maps, which images) of the encoder of timm called `name`."""
    name = f"timm/{name}"
    try:
        found = plan(name)
    except UserError as error:
        return "-", first_line(error)
    strides = " ".join(map(str, found.strides))
    if len(set(found.strides)) == 1:
        strides = f"{found.strides[-1]} (plain)"
    elif found.strides[-1] == 32:
        with contextlib.suppress(UserError):
            plan(name, (("output_stride", 8),))
            strides += ", dilatable"
    if found.tile:
        return strides, "in tiles of {}x{}".format(*found.tile)
    return strides, f"padded to multiples of {found.multiple}" if found.multiple > 1 else "any size"


def _small(names):
    """One of the smaller encoders, by its name."""
    return min(names, key=lambda name: (next(
        (i for i, mark in enumerate(_SMALL) if mark in name), len(_SMALL)), len(name)))


def _columns(rows):
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
