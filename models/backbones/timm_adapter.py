"""Any convolutional encoder of timm, as `"backbone": "timm/NAME"`.

timm (pip install timm) is optional; it is imported only for such a name.
"""
import torch

from models.backbones import Backbone
from utils.errors import ConfigError, first_line
from utils.machine.tensors import ImageBatch


class TimmBackbone(Backbone):
    """The feature maps with strides 4 and more of timm's `features_only` network.

    x: float (N, 3, H, W), normalized. name: "timm/" and the name in timm.
    output_stride: 8 or 16 if timm's network supports dilation. pretrained: timm's
    default weights. Encoders that timm marks as made for one image size have it as `fixed_size`;
    most of them refuse other sizes, and then forward raises ConfigError.
    """

    def __init__(self, name: str = "timm/resnet50", output_stride: int = 32,
                 pretrained: bool = False):
        super().__init__()
        try:
            import timm  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError(f"backbone {name} needs timm, which is not installed",
                              where="arch.args.backbone", fix="pip install timm") from error
        options = {} if output_stride == 32 else {"output_stride": output_stride}
        try:
            self.encoder = timm.create_model(name.removeprefix("timm/"), features_only=True,
                                             pretrained=pretrained, **options)
        except Exception as error:      # timm raises errors of many kinds
            raise ConfigError(f"timm cannot build {name} ({type(error).__name__}: {error})",
                              where="arch.args.backbone",
                              fix=_remedy(error, output_stride)) from error
        info = self.encoder.feature_info
        self.kept = [i for i, stride in enumerate(info.reduction()) if stride >= 4]
        self.channels = [info.channels()[i] for i in self.kept]
        self.strides = [info.reduction()[i] for i in self.kept]
        self.channels_last = getattr(self.encoder, "output_fmt", "NCHW") == "NHWC"
        self.name, found = name, getattr(self.encoder, "pretrained_cfg", None) or {}
        if found.get("fixed_input_size"):
            self.fixed_size = tuple(found["input_size"][1:])

    def forward(self, x: ImageBatch) -> list[torch.Tensor]:
        maps = self.encoder(x) if torch.compiler.is_compiling() else self._encoded(x)
        maps = [maps[i] for i in self.kept]
        return [m.permute(0, 3, 1, 2) for m in maps] if self.channels_last else maps

    def _encoded(self, x):
        size = tuple(x.shape[2:])
        try:
            return self.encoder(x)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, IndexError, RuntimeError) as error:
            # Only timm's own checks are assertions; other errors may have any other cause.
            if size == self.fixed_size or not (self.fixed_size
                                               or isinstance(error, AssertionError)):
                raise
            raise _wrong_size(self.name, size, self.fixed_size, error) from error


def _wrong_size(name, size, fixed, error):
    found = "x".join(map(str, size))
    if not fixed:
        return ConfigError(f"{name} cannot take images of {found}: {first_line(error)}",
                           "arch.args.backbone", "choose another crop_size, or another encoder")
    wanted = "x".join(map(str, fixed))
    return ConfigError(f"{name} takes images of {wanted} only, found {found} "
                       f"({first_line(error)})", "arch.args.backbone",
                       "use an encoder for any size (convnext, pvt_v2, resnet, ...), or train with "
                       f"crop_size {list(fixed)} and set predict.mode to sliding and "
                       f"predict.crop_size to {list(fixed)}")


def _remedy(error, output_stride):
    """What to do about an error of timm's create_model."""
    if output_stride != 32 and "output_stride" in str(error):
        return "it cannot be dilated: set arch.args.output_stride to 32, or use another encoder"
    return "see timm.list_models(); pretrained needs the network"
