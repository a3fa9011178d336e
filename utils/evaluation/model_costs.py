"""Parameters, FLOPs, time and memory of a network, measured in this process."""
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from utils.config.build import build
from utils.config.registry import components
from utils.errors import UserError, first_line
from utils.machine.memory import forget_peak, resident
from utils.training.criterion import Criterion


@dataclass(frozen=True)
class CostJob:
    """A network to measure, and how.

    backbone: None is the architecture's default. height, width: of the images, in pixels.
    batch: images at a time. repeats: runs of each measure, of which the fastest counts.
    threads: on the CPU; 0 is torch's choice. train: whether to measure training too.
    """

    type: str
    backbone: str | None
    device: str
    height: int
    width: int
    batch: int
    classes: int
    repeats: int
    threads: int
    train: bool

    @property
    def title(self) -> str:
        """The architecture and its backbone."""
        return f"{self.type} {self.backbone or ''}".strip()


def measure(job: CostJob) -> Iterator[dict[str, Any]]:
    """Yield what each stage measured, so that a later failure leaves the earlier numbers.

    Keys: parameters; flops (of one image's inference, two per multiply-add), infer_seconds,
    infer_bytes; train_seconds, train_bytes. Seconds are per batch, bytes are the peak above the
    memory that was in use before the network was built (None if the system does not report it).
    A failure yields "error", and "refused": True if the network cannot be built with the backbone.
    """
    if job.threads:
        torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    device = torch.device(job.device)
    _warm_up(device)
    images = torch.randn(job.batch, 3, job.height, job.width, device=device)
    gauge = _Gauge(device)
    try:
        model = build("models", {"type": job.type,
                                 "args": {"backbone": job.backbone} if job.backbone else {}},
                      num_classes=job.classes).to(device)
    except UserError as error:
        yield {"error": error.what, "refused": True}
        return
    yield {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    try:
        yield _inference(model, images, gauge, job.repeats)
        if job.train:
            yield _training(model, images, gauge, job.repeats, job.classes)
    except (RuntimeError, ValueError) as error:     # e.g. out of memory
        yield {"error": first_line(error)}


def flop_counter() -> FlopCounterMode:
    """Return torch's counter of FLOPs, two per multiply-add, with attention also on a CPU.

    It counts convolutions, matrix products and attention. torch has no formula for the kernel that
    computes attention on a CPU, and would leave it out there.
    """
    aten = torch.ops.aten
    return FlopCounterMode(display=False, custom_mapping={
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward})


def _attention(query, key, value, *others, **options):
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient, query, key, value, *others, **options):
    return sdpa_backward_flop_count(gradient, query, key, value)


def _warm_up(device):
    """Load what torch and this program load on first use, before memory is measured."""
    components("models")
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8))
    layers, images = layers.to(device), torch.zeros(2, 3, 16, 16, device=device)
    gauge = _Gauge(device)
    _inference(layers, images, gauge, 1)
    _training(layers, images, gauge, 1, 8)


def _inference(model, images, gauge, repeats):
    """The network in eval mode, without gradients."""
    model.eval()
    with torch.no_grad():
        with flop_counter() as counter:
            model(images)                           # also warms up
        gauge.forget()
        seconds = [gauge.seconds(lambda: model(images)) for _ in range(repeats)]
    return {"flops": counter.get_total_flops() / len(images), "infer_seconds": min(seconds),
            "infer_bytes": gauge.peak()}


def _training(model, images, gauge, repeats, classes):
    """Forward, loss, backward, SGD with momentum.

    The loss is the cross-entropy of every output, or the one that the network was made for if that
    reads labels alone (BaseModel.loss).
    """
    model.train()
    labels = torch.randint(classes, (len(images), *images.shape[2:]), device=images.device)
    own = _own_loss(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6,
                                momentum=0.9, fused=True)
    targets = {}

    def step():
        outputs = model(images)
        outputs = outputs if isinstance(outputs, dict) else {"out": outputs}
        loss = own(outputs, {"label": labels})[0] if own else torch.zeros((), device=images.device)
        for name, logits in outputs.items() if not own else ():
            if name not in targets:
                targets[name] = torch.randint(logits.shape[1], labels.shape, device=images.device)
            loss = loss + torch.nn.functional.cross_entropy(logits, targets[name])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    gauge.forget()
    seconds = [gauge.seconds(step) for _ in range(repeats)]
    return {"train_seconds": min(seconds), "train_bytes": gauge.peak()}


def _own_loss(model):
    """The criterion of a network that is made for one loss on labels; None for the others."""
    name = getattr(model, "loss", None)
    if not name or hasattr(components("losses")[name], "targets"):
        return None
    return Criterion(name, model.output_weights)


class _Gauge:
    """Measures the time of steps, and the peak of memory above that at construction."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.before = torch.cuda.memory_allocated() if self.cuda else resident("VmRSS")

    def seconds(self, step: Callable[[], object]) -> float:
        """The time of a step: of the clock on CUDA, of the processor per thread on the CPU."""
        if not self.cuda:
            start = time.process_time()
            step()
            return (time.process_time() - start) / torch.get_num_threads()
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def forget(self):
        """Reset the peak, if the system can."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            forget_peak()

    def peak(self) -> int | None:
        """Bytes above the memory at construction; None if the system does not report them."""
        peak = torch.cuda.max_memory_allocated() if self.cuda else resident("VmHWM")
        return None if peak is None or self.before is None else peak - self.before
