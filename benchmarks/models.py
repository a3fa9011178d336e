"""Compares our networks with plain versions of the same networks and with other packages.

    python -m benchmarks.models [NAME ...] [--size 256x256] [--batch 2] [--repeats 7]
    python -m benchmarks.models --small [--size 512x1024]

Some of the same networks are in torchvision, timm and transformers, others in
benchmarks/plain_models.py ("plain"); with the same weights, the plain ones and those of
transformers must compute our logits. segmentation_models_pytorch ("smp") has different networks
under the same names; times against those are per FLOP. A package that is not installed is reported
and left out.

Each pair runs in turns in one process: forward in eval mode, then forward and backward. Printed
are the median over the turns of the ratio of CPU times (ours / theirs), and the ratio of the peak
memory of tensors besides the weights. 1.00 is equal; less is better for us.

--small compares our own small networks with each other in the same way: parameters, FLOPs of an
image, and the medians of the CPU times of a batch and of their ratios to the first network.
"""
import argparse
import statistics
import time
import weakref

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import plain_models
from models.weights.published import load_strictly, published, translate
from utils.cli.arguments import at_least, size
from utils.config.registry import components
from utils.evaluation.model_costs import flop_counter
from utils.machine.tensors import ImageBatch

CLASSES = 21
RESNET = {"backbone": "resnet50"}
EOMT_SIDE = 256         # of the only images that the EoMT of transformers takes
# (name, arguments of our network, other package, function that builds the other network,
# whether the two networks are the same)
PAIRS = [
    ("DeepLabV3", RESNET, "torchvision", lambda: _torchvision("deeplabv3_resnet50"), True),
    ("FCNResNet", RESNET, "torchvision", lambda: _torchvision("fcn_resnet50"), True),
    ("LRASPP", {}, "torchvision", lambda: _torchvision("lraspp_mobilenet_v3_large"), True),
    *((name, arguments, "plain", lambda name=name: getattr(plain_models, name)(CLASSES), True)
      for name, arguments in (("DeepLab", RESNET), ("PSPNet", RESNET), ("UNet", {}),
                              ("UperNet", RESNET))),
    ("ViTLinear", {"backbone": "dinov2_vits14"}, "timm DINOv2",
     lambda: _TimmLinear("vit_small_patch14_dinov2", img_size=518, dynamic_img_pad=True), True),
    ("ViTLinear", {"backbone": "dinov3_vits16"}, "timm DINOv3",
     lambda: _TimmLinear("vit_small_patch16_dinov3"), True),
    ("DeepLab", RESNET, "smp", lambda: _smp("DeepLabV3Plus"), False),
    # The encoders of smp's PSPNet and UPerNet are not dilated.
    ("PSPNet", {**RESNET, "use_aux": False, "output_stride": 32}, "smp",
     lambda: _smp("PSPNet", encoder_depth=5, psp_out_channels=512), False),
    ("UNet", {}, "smp", lambda: _smp("Unet", encoder_name="vgg13_bn", encoder_depth=4,
                                     decoder_channels=(512, 256, 128, 64)), False),
    ("UperNet", {**RESNET, "output_stride": 32}, "smp", lambda: _smp("UPerNet"), False),
    *(("UPerNet", {"backbone": f"{kind}_tiny", "use_aux": False, "drop_path": 0.0}, "transformers",
       lambda kind=kind: _transformers_upernet(kind), True) for kind in ("swin", "convnext")),
    ("SegFormer", {"drop_path": 0.0}, "transformers", lambda: _transformers_segformer(), True),
    ("EoMT", {"backbone": "dinov2_vits14_reg", "image_size": EOMT_SIDE}, "transformers",
     lambda: _TransformersEoMT(), True),
]
# (title, network, its arguments): what is run where speed counts.
SMALL = [("ENet", "ENet", {}), ("PIDNet-S", "PIDNet", {"variant": "s"}),
         ("SegFormer-B0", "SegFormer", {"backbone": "mit_b0"})]


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted({name for name, *_ in PAIRS})
    parser.add_argument("names", nargs="*", default=names, metavar="NAME",
                        help="any of " + ", ".join(names))
    parser.add_argument("--size", type=size, metavar="N|HxW",
                        help="size of the images (default: 256x256, with --small 512x1024)")
    parser.add_argument("--batch", type=at_least(2), default=2,
                        help="number of images (default: 2)")
    parser.add_argument("--repeats", type=at_least(1), default=7,
                        help="number of turns (default: 7)")
    parser.add_argument("--same", action="store_true",
                        help="only pairs in which both networks are the same")
    parser.add_argument("--small", action="store_true",
                        help="compare " + ", ".join(title for title, *_ in SMALL))
    options = parser.parse_args(argv)
    if wrong := set(options.names) - set(names):
        parser.error(f"no pair of {', '.join(sorted(wrong))}; choose from {', '.join(names)}")
    torch.manual_seed(0)
    height, width = options.size or ((512, 1024) if options.small else (256, 256))
    images = torch.randn(options.batch, 3, height, width)
    if options.small:
        return side_by_side(images, options.repeats)
    print("ours / theirs, times per FLOP where the networks differ")
    print(f"{'network':10} {'other':12} {'FLOPs':>6} {'params':>7} | {'forward':>8} "
          f"{'memory':>7} | {'fwd+bwd':>8} {'memory':>7}", flush=True)
    for name, arguments, package, other, same in PAIRS:
        if name not in options.names or options.same and not same:
            continue
        try:
            theirs = other()
        except ImportError as error:
            print(f"{name:10} {package:12} left out: {error}")
            continue
        ours = components("models")[name](num_classes=CLASSES, **arguments)
        if name == "EoMT" and (height, width) != (EOMT_SIDE, EOMT_SIDE):
            print(f"{name:10} {package:12} left out: it needs --size {EOMT_SIDE}")
            continue
        if package in ("plain", "transformers"):
            _require_equal_logits(ours, theirs, images)
        compare(f"{name:10} {package:12}", ours, theirs, images, options.repeats, same)


def _require_equal_logits(ours, theirs, images):
    """Gives both networks the same weights and compares what they compute.

    The weights of a network of transformers become ours as those of its published files do. A
    plain one gets ours in the order of the state dicts. Raises AssertionError if the greatest
    difference is more than 1e-4 of the standard deviation.
    """
    if name := getattr(theirs, "published", None):
        load_strictly(ours, translate(theirs.network.state_dict(), published()[name]))
    else:
        theirs.load_state_dict(
            dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    with torch.no_grad():
        mine, other = ours.eval()(images), theirs.eval()(images)
    assert (mine - other).abs().max() <= 1e-4 * other.std(), "the networks are not the same"


def compare(title: str, ours: nn.Module, theirs: nn.Module, images: ImageBatch, repeats: int,
            same: bool):
    """Prints one row: FLOPs, parameters, times and memory of ours / theirs; images: float."""
    flops = _flops(ours, images) / _flops(theirs, images)
    params = _count(ours) / _count(theirs)
    divisor = 1.0 if same else flops
    cells = []
    for step, train in ((_forward, False), (_forward_backward, True)):
        for network in (ours, theirs):
            network.train(train)
        ratios = []
        for turn in range(repeats + 1):
            pair = (ours, theirs) if turn % 2 else (theirs, ours)
            seconds = {network: _cpu_time(step, network, images) for network in pair}
            if turn:                    # the first turn warms up
                ratios.append(seconds[ours] / seconds[theirs] / divisor)
        memory = _peak(step, ours, images) / _peak(step, theirs, images)
        cells += [statistics.median(ratios), memory]
    print(f"{title} {flops:6.2f} {params:7.2f} | {cells[0]:8.3f} {cells[1]:7.3f} | "
          f"{cells[2]:8.3f} {cells[3]:7.3f}", flush=True)


def side_by_side(images: ImageBatch, repeats: int):
    """Prints a row for each of SMALL, which run in turns; images: float."""
    networks = [(title, components("models")[name](num_classes=CLASSES, **arguments))
                for title, name, arguments in SMALL]
    rows = {title: [f"{title:14} {_count(network) / 1e6:8.2f} "
                    f"{_flops(network, images) / len(images) / 1e9:7.1f} "]
            for title, network in networks}
    print(f"{'network':14} {'params M':>8} {'GFLOPs':>7} | {'forward s':>9} {'ratio':>6} "
          f"{'MiB':>6} | {'fwd+bwd s':>9} {'ratio':>6} {'MiB':>6}", flush=True)
    for step, train in ((_forward, False), (_forward_backward, True)):
        turns = []
        for turn in range(repeats + 1):
            seconds = {}
            for title, network in networks[::1 if turn % 2 else -1]:
                seconds[title] = _cpu_time(step, network.train(train), images)
            if turn:                    # the first turn warms up
                turns.append(seconds)
        for title, network in networks:
            ratio = statistics.median(seconds[title] / seconds[SMALL[0][0]] for seconds in turns)
            median = statistics.median(seconds[title] for seconds in turns)
            memory = _peak(step, network, images) / 2 ** 20
            rows[title].append(f" {median:9.2f} {ratio:6.2f} {memory:6.0f} ")
    print("\n".join("|".join(parts).rstrip() for parts in rows.values()))


def _forward(network, images):
    with torch.no_grad():
        network(images)


def _forward_backward(network, images):
    out = network(images)
    first, *others = [v.mean() for v in (out.values() if isinstance(out, dict) else (out,))]
    sum(others, first).backward()
    network.zero_grad(set_to_none=True)


def _cpu_time(step, network, images):
    start = time.process_time()
    step(network, images)
    return time.process_time() - start


def _peak(step, network, images):
    """The peak bytes of the tensors that a step creates."""
    with _AliveBytes() as counter:
        step(network, images)
    return counter.peak


class _AliveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations create, each until it is freed."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):    # inputs that existed before
                self.known.add(tensor.untyped_storage()._cdata)
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage):
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, address, size):
        self.known.discard(address)
        self.alive -= size


def _flops(network, images):
    network.eval()
    with flop_counter() as counter, torch.no_grad():
        network(images)
    return counter.get_total_flops()


def _count(network):
    return sum(p.numel() for p in network.parameters())


def _torchvision(name):
    from torchvision.models.segmentation import __dict__ as builders
    options = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
    if "lraspp" not in name:
        options["aux_loss"] = True
    return _OnlyLogits(builders[name](**options))


def _smp(name, encoder_name="resnet50", **options):
    import segmentation_models_pytorch
    return getattr(segmentation_models_pytorch, name)(
        encoder_name=encoder_name, encoder_weights=None, classes=CLASSES, **options)


def _transformers_upernet(kind):
    """On Swin or ConvNeXt (`kind`), without the auxiliary head."""
    from transformers import (  # pyright: ignore[reportMissingImports]
        ConvNextConfig,
        SwinConfig,
        UperNetConfig,
        UperNetForSemanticSegmentation,
    )
    encoder = {"swin": SwinConfig, "convnext": ConvNextConfig}[kind]
    maps = ["stage1", "stage2", "stage3", "stage4"]
    return _Transformers(f"upernet_{kind}_tiny", UperNetForSemanticSegmentation(UperNetConfig(
        backbone_config=encoder(out_features=maps, drop_path_rate=0.0), num_labels=CLASSES,
        hidden_size=512, use_auxiliary_head=False)))


def _transformers_segformer():
    from transformers import (  # pyright: ignore[reportMissingImports]
        SegformerConfig,
        SegformerForSemanticSegmentation,
    )
    return _Transformers("segformer_b0", SegformerForSemanticSegmentation(
        SegformerConfig(drop_path_rate=0.0, num_labels=CLASSES)))


class _Transformers(nn.Module):
    """A network of transformers with logits at the size of the image.

    published: the name of our description of its checkpoints.
    """

    def __init__(self, published: str, network: nn.Module):
        super().__init__()
        self.published, self.network = published, network

    def forward(self, x):
        logits = self.network(x).logits
        return nn.functional.interpolate(logits, x.shape[2:], mode="bilinear")


class _TransformersEoMT(nn.Module):
    """The EoMT of transformers, without masked attention.

    eval: scores at the size of the image; train: the masks and classes of all predictions, which
    its own forward gives to its loss alone.
    """

    published = "eomt_small"

    def __init__(self):
        super().__init__()
        from transformers import (  # pyright: ignore[reportMissingImports]
            EomtConfig,
            EomtForUniversalSegmentation,
        )
        self.network = EomtForUniversalSegmentation(EomtConfig(
            hidden_size=384, num_attention_heads=6, num_hidden_layers=12, image_size=EOMT_SIDE,
            num_queries=100, num_labels=CLASSES))
        self.network.attn_mask_probs.zero_()
        self.predictions, predict = [], self.network.predict

        def predict_and_keep(tokens):
            self.predictions.append(predict(tokens))
            return self.predictions[-1]

        self.network.predict = predict_and_keep

    def forward(self, x):
        self.network(x)
        predictions, self.predictions[:] = [*self.predictions], []
        masks, classes = (torch.stack(part, 1) for part in zip(*predictions, strict=True))
        if self.training:
            return {"masks": masks, "classes": classes}
        masks = nn.functional.interpolate(masks[:, -1], x.shape[2:], mode="bilinear")
        return torch.einsum("nqc,nqhw->nchw", classes[:, -1].softmax(-1)[..., :-1],
                            masks.sigmoid())


class _OnlyLogits(nn.Module):
    """A torchvision network that, like ours, returns only logits in eval mode.

    The auxiliary head is skipped there.
    """

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        if self.training:
            return self.network(x)
        aux, self.network.aux_classifier = getattr(self.network, "aux_classifier", None), None
        out = self.network(x)["out"]
        self.network.aux_classifier = aux
        return out


class _TimmLinear(nn.Module):
    """A vision transformer of timm under batch norm and a 1x1 convolution.

    The resize of DINOv2's positions gives other numbers than ours, with the same arithmetic.
    """

    def __init__(self, name, **options):
        super().__init__()
        import timm
        self.encoder = timm.create_model(name, num_classes=0, dynamic_img_size=True, **options)
        self.last = len(self.encoder.blocks) - 1
        channels = self.encoder.embed_dim
        self.head = nn.Sequential(nn.BatchNorm2d(channels), nn.Conv2d(channels, CLASSES, 1))

    def forward(self, x):
        maps = self.encoder.forward_intermediates(x, indices=[self.last], norm=True,
                                                  intermediates_only=True)
        return nn.functional.interpolate(self.head(maps[0]), x.shape[2:], mode="bilinear")


if __name__ == "__main__":
    main()
