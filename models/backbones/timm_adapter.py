"""Any image encoder of timm, as `"backbone": "timm/NAME"`.

timm (pip install timm) is optional; it is imported only for such a name. What an encoder can do is
not in a table here: it is found out by computing shapes with a copy on torch's meta device, which
takes about a second and no memory.
"""
import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import Backbone
from utils.cli.console import notice
from utils.errors import ConfigError, first_line
from utils.machine.tensors import ImageBatch

# Options by which encoders of timm accept other image sizes than that of their weights.
_SIZE_OPTIONS = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
_SMALLEST_STRIDE = 4
_LOST = 4               # pixels that a map may lack at its borders: Inception does not pad
_LEVELS = 4             # maps of a plain encoder: after each quarter of its blocks
_OTHER = "use another one: python train.py --list backbones timm"


class TimmBackbone(Backbone):
    """The feature maps with strides 4 and more of an encoder of timm.

    x: float (N, 3, H, W), normalized as its weights need it (`normalization`); any H and W. Where
    the encoder needs sides that are multiples of a patch or a window, the image is padded.
    An encoder for images of one size gets the image in tiles of this size, each encoded on its
    own, and the maps of the tiles are joined (`tile`).

    Plain vision transformers have four maps of one stride: after each quarter of their blocks,
    with the final norm. An auxiliary head uses the third.

    name: "timm/" and the name in timm, of which a part after a dot names the weights.
    output_stride: 8 or 16 if timm's network supports dilation. pretrained: the weights
    that timm has for the name. drop_path: the chance to leave out the last block for an image in
    training, smaller in earlier ones. checkpointing: compute blocks again in the backward pass,
    which saves memory. Parameters on which no map depends become buffers, so that training with
    several processes does not wait for their gradients.
    """

    def __init__(self, name: str = "timm/resnet50", output_stride: int = 32,
                 pretrained: bool = False, drop_path: float = 0.0, checkpointing: bool = False):
        super().__init__()
        options = {} if output_stride == 32 else {"output_stride": output_stride}
        options |= {"drop_path_rate": drop_path} if drop_path else {}
        found = plan(name, tuple(options.items()))
        self.encoder = _created(name, found.options, found.plain, pretrained)
        self.layers = _layers(self.encoder) if found.plain else None
        self.kept, self.channels, self.strides = found.kept, found.channels, found.strides
        self.multiple, self.smallest, self.tile = found.multiple, found.smallest, found.tile
        for key in found.idle:
            place, _, key = key.rpartition(".")
            module = self.encoder.get_submodule(place)
            tensor = getattr(module, key).detach()
            delattr(module, key)
            module.register_buffer(key, tensor)
        if pretrained:
            self.normalization = found.normalization
        if checkpointing:
            self._checkpoint(name)
        if self.tile:
            notice(f"{name} is made for images of {self.tile[0]}x{self.tile[1]}: it encodes an "
                   "image in tiles of this size, each on its own")

    def forward(self, x: ImageBatch) -> list[torch.Tensor]:
        height, width = x.shape[2:]
        x = self._padded(x)
        maps = self._of_tiles(x, *self.tile) if self.tile else self._maps(x)
        # Only where the image was padded, this changes anything.
        return [m[..., :_ceil(height * m.shape[2], x.shape[2]),
                  :_ceil(width * m.shape[3], x.shape[3])] for m in maps]

    def _padded(self, x):
        """x with zeros at the right and the bottom, for the sizes that the encoder takes."""
        units = self.tile or (self.multiple, self.multiple)
        height, width = (unit * _ceil(max(side, self.smallest), unit)
                         for side, unit in zip(x.shape[2:], units, strict=True))
        if not torch.compiler.is_exporting() and (height, width) == tuple(x.shape[2:]):
            return x
        return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))

    def _maps(self, x):
        maps = _maps(self.encoder, x, self.layers)
        return [maps[i] for i in self.kept]

    def _of_tiles(self, x, high, wide):
        """The maps of the tiles of x, (N, C, h, w) for all of x."""
        rows, columns = x.shape[2] // high, x.shape[3] // wide
        tiles = x.unflatten(2, (rows, high)).unflatten(4, (columns, wide))
        tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)       # (N rows columns, 3, h, w)
        maps = [m.unflatten(0, (len(x), rows, columns)) for m in self._maps(tiles)]
        return [m.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3) for m in maps]

    def _checkpoint(self, name):
        if any(getattr(module, "running_var", None) is not None for module in self.modules()):
            raise ConfigError(f"{name} has batch norms, whose statistics checkpointing would "
                              "update twice", "arch.args.checkpointing", "set it to false")
        encoder: Any = self.encoder
        try:
            encoder.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise ConfigError(f"{name} has no activation checkpointing in timm",
                              "arch.args.checkpointing", "set it to false") from error


@dataclass(frozen=True)
class Plan:
    """How an encoder is built and used.

    options: for timm. plain: whether its maps have one stride. kept: the indices of the maps with
    strides of 4 and more. multiple, smallest: of the sides of an image, in pixels. tile: (H, W) of
    the only images that it takes, or None. idle: parameters on which no map depends.
    normalization: the input of its weights, as the section normalize of a config.
    """

    options: dict[str, Any]
    plain: bool
    kept: list[int]
    channels: list[int]
    strides: list[int]
    multiple: int
    smallest: int
    tile: tuple[int, int] | None
    idle: list[str]
    normalization: dict[str, Any]


def import_timm(name):
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(f"backbone {name} needs timm, which is not installed",
                          where="arch.args.backbone", fix="pip install timm") from error
    return timm


@functools.lru_cache(maxsize=32)
def plan(name: str, given: tuple[tuple[str, Any], ...] = ()) -> Plan:
    """Find out how the encoder called `name` is used.

    given: options for timm. Raises ConfigError if it cannot be used at all.
    """
    with torch.random.fork_rng(devices=[]):         # the start weights do not depend on the cache
        try:
            return _plan_on("meta", name, dict(given))
        except ConfigError as error:
            if "meta" not in str(error):
                raise
        return _plan_on("cpu", name, dict(given))   # some encoders look at values of tensors


def _plan_on(device, name, given):
    with torch.device(device):
        options, encoder = _of_stride(name, given)
        info: Any = encoder.feature_info
        strides = list(info.reduction())
        plain = len(set(strides)) == 1
        if plain:
            encoder = _created(name, options, plain)
            info = encoder.feature_info
            strides = [info[layer]["reduction"] for layer in _layers(encoder)]
        probe = _Probe(encoder, strides, plain, device)
        multiple, tile = probe.sizes(name)
        kept = [i for i, stride in enumerate(strides) if stride >= _SMALLEST_STRIDE]
        smallest = max(tile) if tile else probe.smallest(multiple)
        return Plan(options, plain, kept, [probe.channels[i] for i in kept],
                    [strides[i] for i in kept], multiple, smallest, tile, probe.idle(kept),
                    _normalization(encoder))


def _of_stride(name, given):
    """As _with_any_size; a plain encoder is built without `output_stride`, which it does not have.

    Raises ConfigError if another encoder does not have it.
    """
    try:
        return _with_any_size(name, given)
    except ConfigError as error:
        stride = given.get("output_stride")     # refused in many ways: by name, by an assertion
        if not stride:
            raise
        given = {option: value for option, value in given.items() if option != "output_stride"}
        options, encoder = _with_any_size(name, given)
        info: Any = encoder.feature_info
        strides = info.reduction()
        if len(set(strides)) == 1:
            return options, encoder
        raise ConfigError(f"{name} has output stride {strides[-1]} and cannot be dilated to "
                          f"{stride}", "arch.args.output_stride",
                          f"set it to {strides[-1]} if the network has this option, or use another "
                          "encoder or network") from error


def _with_any_size(name, given):
    """The options for timm that allow the most image sizes, and the encoder built with them."""
    for extra in _SIZE_OPTIONS:
        try:
            return {**extra, **given}, _created(name, {**extra, **given}, False)
        except ConfigError as error:
            if not any(option in str(error) for option in extra):
                raise
    raise AssertionError("the last of _SIZE_OPTIONS has no option that timm can refuse")


def _created(name, options, plain, pretrained=False) -> nn.Module:
    """The encoder that timm builds; a plain one without timm's wrapper, but with its final norm."""
    timm = import_timm(name)
    options = {**options, **({"num_classes": 0} if plain else {"features_only": True})}
    try:
        encoder = timm.create_model(name.removeprefix("timm/"), pretrained=pretrained, **options)
    except Exception as error:      # timm raises errors of many kinds
        raise ConfigError(f"timm cannot build {name} ({type(error).__name__}: "
                          f"{first_line(error)})", "arch.args.backbone",
                          _remedy(error, pretrained)) from error
    if plain:
        encoder.prune_intermediate_layers(_layers(encoder), prune_norm=False, prune_head=True)
    return encoder


def _layers(encoder: Any) -> list[int]:
    """The blocks of a plain encoder after which there is a map: one in each quarter."""
    depth = len(encoder.feature_info)
    return sorted({-(-depth * quarter // _LEVELS) - 1 for quarter in range(1, _LEVELS + 1)})


def _maps(encoder: Any, x: torch.Tensor, layers: list[int] | None) -> list[torch.Tensor]:
    """All maps of an encoder of timm as (N, C, h, w). layers: those of a plain encoder."""
    if layers:
        return encoder.forward_intermediates(x, indices=layers, norm=True, output_fmt="NCHW",
                                             intermediates_only=True)
    maps = encoder(x)
    if getattr(encoder, "output_fmt", "NCHW") == "NHWC":
        return [m.permute(0, 3, 1, 2) for m in maps]
    return list(maps)


class _Probe:
    """Finds out which images an encoder takes, without data: see the file's docstring.

    strides: of all its maps. After a call that found something, `channels` are those of the maps.
    """

    def __init__(self, encoder: nn.Module, strides: list[int], plain: bool, device: str):
        self.device = device
        self.encoder, self.strides = encoder.eval(), strides
        self.layers = _layers(encoder) if plain else None
        self.channels: list[int] = []
        self.last = (0, 0)          # the last size that worked
        config = getattr(encoder, "pretrained_cfg", None) or {}
        self.image_size: tuple[int, int] = tuple(config.get("input_size", (3, 224, 224))[1:])

    def sizes(self, name: str) -> tuple[int, tuple[int, int] | None]:
        """(the number of which the sides must be multiples, None), or (1, the only size).

        Raises ConfigError if no size works.
        """
        largest = max(self.strides)
        for multiple in sorted({1, *self.strides, *self.image_size}):
            first, second = (multiple * _ceil(n * largest + 1, multiple) for n in (3, 5))
            if first == second:
                second += multiple
            if not (self._error(first, second) or self._error(second + multiple, first)):
                return multiple, None
        error = self._error(*self.image_size)
        if error is None:
            return 1, self.image_size
        raise ConfigError(f"{name} cannot be an encoder: {first_line(error)}",
                          "arch.args.backbone", _OTHER)

    def smallest(self, multiple: int) -> int:
        """The smallest side that the encoder takes, in pixels; its maps have a pixel or more."""
        side = multiple * _ceil(max(self.strides), multiple)
        while self._error(side, side):
            side += side
        return side

    def idle(self, kept: list[int]) -> list[str]:
        """The names of the parameters on which no map of `kept` depends."""
        self.encoder.train()        # in eval mode, some keep a copy of what they compute from one
        maps = _maps(self.encoder, self._image(2, *self.last), self.layers)
        torch.stack([maps[i].float().sum() for i in kept]).sum().backward()
        return [name for name, p in self.encoder.named_parameters() if p.grad is None]

    def _image(self, *sizes):
        return torch.zeros(sizes[0], 3, *sizes[1:], device=self.device)

    def _error(self, height: int, width: int) -> Exception | None:
        """What is wrong with images of this size, or None."""
        try:
            with torch.no_grad():
                maps = _maps(self.encoder, self._image(1, height, width), self.layers)
        except Exception as error:      # encoders check their input in many ways
            return error
        for m, stride in zip(maps, self.strides, strict=True):
            for side, found in zip((height, width), m.shape[2:], strict=True):
                if not found or abs(found - side / stride) > _LOST:
                    return ValueError(f"a map of stride {stride} has size {found} for {side}")
        self.channels, self.last = [m.shape[1] for m in maps], (height, width)
        return None


def _normalization(encoder):
    config = encoder.pretrained_cfg
    return {"mean": list(config["mean"]), "std": list(config["std"]), "order": "RGB",
            "scale": 255.0}


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _remedy(error, pretrained):
    """What to do about an error of timm's create_model."""
    if "drop_path_rate" in str(error):
        return "it has no drop path: set arch.args.drop_path to 0"
    if pretrained:      # it was built without, so its weights are the reason
        return ("set arch.args.pretrained to false, or give it internet access: it downloads "
                "the weights")
    return _OTHER
