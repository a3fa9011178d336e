"""Our networks beside the same ones written plainly, and beside those of other packages.

    python -m benchmarks.models [NAME ...] [--size 256x256] [--batch 2] [--repeats 7]

torchvision has some of them, benchmarks/plain_models.py others: given our weights,
they must give our logits. segmentation_models_pytorch has other networks under the
same names; times beside those are per FLOP. A package that is not installed is
named and left out.

Each pair runs in turns within one process: forward in eval mode, then forward
and backward. Printed are the medians of the CPU time ratios of neighbouring
turns (ours over theirs) and the ratio of the peak memory that tensors take
beyond the weights. 1.00 is equal; less is better for us.
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
from utils.arguments import at_least, size
from utils.registry import components

CLASSES = 21
RESNET = {"backbone": "resnet50"}
# (name, arguments of ours, whose network, how to build it, whether it is the same one)
PAIRS = [
    ("DeepLabV3", RESNET, "torchvision", lambda: _torchvision("deeplabv3_resnet50"), True),
    ("FCNResNet", RESNET, "torchvision", lambda: _torchvision("fcn_resnet50"), True),
    ("LRASPP", {}, "torchvision", lambda: _torchvision("lraspp_mobilenet_v3_large"), True),
    *((name, arguments, "plain", lambda name=name: getattr(plain_models, name)(CLASSES), True)
      for name, arguments in (("DeepLab", RESNET), ("PSPNet", RESNET), ("UNet", {}),
                              ("UperNet", RESNET))),
    ("DeepLab", RESNET, "smp", lambda: _smp("DeepLabV3Plus"), False),
    # smp's encoders of PSPNet and UPerNet are not dilated.
    ("PSPNet", {**RESNET, "use_aux": False, "output_stride": 32}, "smp",
     lambda: _smp("PSPNet", encoder_depth=5, psp_out_channels=512), False),
    ("UNet", {}, "smp", lambda: _smp("Unet", encoder_name="vgg13_bn", encoder_depth=4,
                                     decoder_channels=(512, 256, 128, 64)), False),
    ("UperNet", {**RESNET, "output_stride": 32}, "smp", lambda: _smp("UPerNet"), False),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted({name for name, *_ in PAIRS})
    parser.add_argument("names", nargs="*", default=names, metavar="NAME",
                        help="of " + ", ".join(names))
    parser.add_argument("--size", type=size, default="256x256", metavar="N|HxW",
                        help="of the images (default: %(default)s)")
    parser.add_argument("--batch", type=at_least(2), default=2, help="images (default: 2)")
    parser.add_argument("--repeats", type=at_least(1), default=7, help="turns (default: 7)")
    parser.add_argument("--same", action="store_true",
                        help="only pairs of one and the same network")
    options = parser.parse_args()
    if wrong := set(options.names) - set(names):
        parser.error(f"no pair of {', '.join(sorted(wrong))}; there are {', '.join(names)}")
    torch.manual_seed(0)
    images = torch.randn(options.batch, 3, *options.size)
    print("ours / theirs, times per FLOP where the networks differ")
    print(f"{'network':10} {'beside':12} {'FLOPs':>6} {'params':>7} | {'forward':>8} "
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
        if same and package == "plain":
            _require_one_network(ours, theirs, images)
        compare(f"{name:10} {package:12}", ours, theirs, images, options.repeats, same)


def _require_one_network(ours, theirs, images):
    """Give theirs our weights, in the order of the state dicts, and compare the logits."""
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(images), ours.eval()(images))


def compare(title, ours, theirs, images, repeats, same):
    """Print one line."""
    flops = _flops(ours, images) / _flops(theirs, images)
    params = _count(ours) / _count(theirs)
    divisor = 1.0 if same else flops
    cells = []
    for step, train in ((_forward, False), (_forward_backward, True)):
        ours.train(train), theirs.train(train)
        ratios = []
        for turn in range(repeats + 1):
            pair = (ours, theirs) if turn % 2 else (theirs, ours)
            spent = {network: _cpu_time(step, network, images) for network in pair}
            if turn:                    # the first one warms up
                ratios.append(spent[ours] / spent[theirs] / divisor)
        memory = _peak(step, ours, images) / _peak(step, theirs, images)
        cells += [statistics.median(ratios), memory]
    print(f"{title} {flops:6.2f} {params:7.2f} | {cells[0]:8.3f} {cells[1]:7.3f} | "
          f"{cells[2]:8.3f} {cells[3]:7.3f}", flush=True)


def _forward(network, images):
    with torch.no_grad():
        network(images)


def _forward_backward(network, images):
    out = network(images)
    total = sum(v.mean() for v in (out.values() if isinstance(out, dict) else (out,)))
    total.backward()
    network.zero_grad(set_to_none=True)


def _cpu_time(step, network, images):
    start = time.process_time()
    step(network, images)
    return time.process_time() - start


def _peak(step, network, images):
    """The most bytes of tensors alive at one time during a step, beyond those before it."""
    with _AliveBytes() as counter:
        step(network, images)
    return counter.peak


class _AliveBytes(TorchDispatchMode):
    """Adds up the storages that operations create, each until it is freed."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):    # inputs that were there before
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
    from torch.utils.flop_counter import FlopCounterMode
    network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
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


class _OnlyLogits(nn.Module):
    """torchvision's networks give a dict in eval mode too; as ours, without the unused head."""

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


if __name__ == "__main__":
    main()
