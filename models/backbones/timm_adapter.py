"""Any convolutional encoder of timm, as `"backbone": "timm/NAME"`.

timm (pip install timm) is optional; it is imported only for such a name.
"""
import torch

from models.backbones import Backbone
from utils.errors import ConfigError
from utils.machine.tensors import ImageBatch


class TimmBackbone(Backbone):
    """The feature maps with strides 4 and more of timm's `features_only` network.

    x: float (N, 3, H, W), normalized. name: "timm/" and the name in timm.
    output_stride: 8 or 16 if timm's network supports dilation. pretrained: timm's
    default weights.
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
                              fix="see timm.list_models(); pretrained needs the network, "
                                  "output_stride an encoder that can be dilated") from error
        info = self.encoder.feature_info
        self.kept = [i for i, stride in enumerate(info.reduction()) if stride >= 4]
        self.channels = [info.channels()[i] for i in self.kept]
        self.strides = [info.reduction()[i] for i in self.kept]
        self.channels_last = getattr(self.encoder, "output_fmt", "NCHW") == "NHWC"

    def forward(self, x: ImageBatch) -> list[torch.Tensor]:
        maps = self.encoder(x)
        maps = [maps[i] for i in self.kept]
        return [m.permute(0, 3, 1, 2) for m in maps] if self.channels_last else maps
