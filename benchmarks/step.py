"""Compares our training step with the bare computation and with the loop of the sources.

    python -m benchmarks.step [--models ENet,UNet] [--rounds 5] [--size 256] [--batch 2]

bare    only the forward pass, loss, backward pass and fused optimizer step of the same network,
        with the same dtypes and memory layout as ours.
source  the published loop: float32, contiguous, for-loop SGD, and in every step loss.item() and
        per-batch metrics (argmax of the logits, and one mask per class).

Goals: ours / bare at most 1.02; source / ours at least 2 (DeepLabV3+, PSPNet), 3.5 (U-Net).
"""
import argparse
import statistics
from collections.abc import Callable
from typing import Any

CASES = {"ENet": {}, "DeepLab": {"backbone": "resnet50"}, "PSPNet": {"backbone": "resnet50"},
         "UNet": {}}
CLASSES = 19


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)

    import torch

    from benchmarks.measure import interleaved, ratio, table
    torch.set_num_threads(args.threads)
    rows: list[tuple] = [("network", "ours s", "bare s", "source s", "ours/bare", "source/ours")]
    for name in args.models.split(","):
        batch = batch_of(args.batch, args.size)
        arguments = CASES[name]
        seconds = interleaved({"ours": our_step(name, batch, arguments),
                               "bare": bare_step(name, batch, arguments),
                               "source": source_step(name, batch, arguments)}, args.rounds)
        middle = {key: statistics.median(value) for key, value in seconds.items()}
        rows.append((name, *(f"{middle[k]:.3f}" for k in ("ours", "bare", "source")),
                     f"{ratio(seconds, 'ours', 'bare'):.3f}",
                     f"{ratio(seconds, 'source', 'ours'):.2f}"))
    table(f"one training step, batch {args.batch} of {args.size}x{args.size}, {CLASSES} classes, "
          f"CPU time, {args.threads} thread(s)", rows)


def batch_of(images: int, size: int | tuple[int, int]) -> dict[str, Any]:
    """A random training batch with labels of large regions.

    size: (H, W), or one number for both. image: (N, 3, H, W) uint8; label: (N, H, W) uint8; id: N
    names.
    """
    import torch
    size = (size, size) if isinstance(size, int) else size
    return {"image": torch.randint(0, 256, (images, 3, *size), dtype=torch.uint8),
            "label": _blobs(images, size), "id": ["a"] * images}


def our_step(name: str, batch: dict[str, Any], arguments: dict[str, Any], device: str = "cpu",
             overrides: tuple[str, ...] = ()) -> Callable[[], None]:
    """A function that runs one step of our trainer on `batch`.

    name, arguments: of the network. overrides: of the config.
    """
    import tempfile

    import torch

    from trainer import Trainer
    from utils.config.load import load_config
    from utils.config.schema import resolve_config
    from utils.images.normalize import Normalize
    from utils.training.criterion import Criterion
    from utils.training.finite_guard import FiniteGuard
    from utils.training.log_window import LogWindow
    config = resolve_config(load_config("config.json", ["optimizer.type=SGD",
                                                        'optimizer.args={"lr":0.01,"momentum":0.9,'
                                                        '"weight_decay":1e-4}',
                                                        "loss=CrossEntropyLoss2d",
                                                        "trainer.val=false",
                                                        "trainer.tensorboard=false", *overrides]))
    model = _network(name, arguments)
    dataset = _Dataset()
    loader = _Loader(dataset, len(batch["id"]))
    trainer = Trainer(model, Criterion(config["loss"], model.output_weights),
                      Normalize(dataset.mean, dataset.std), loader, None, config,
                      tempfile.mkdtemp(), torch.device(device))
    trainer.train_model.train()
    trainer.window = LogWindow(trainer.device, len(batch["id"]))
    trainer.guard = FiniteGuard(model, trainer.optimizer, trainer.device, False)

    def step():
        trainer._step([dict(batch)])
        trainer.progress.step += 1
    return step


class _Dataset(list):
    """The attributes of a dataset that a trainer reads; it has no samples."""

    mean, std = [0.5] * 3, [0.25] * 3
    class_names, palette = [str(i) for i in range(CLASSES)], [[0, 0, 0]] * CLASSES


class _Loader:
    """The attributes of dataloader.loader.Loader that a trainer reads before its first batch."""

    batch_transforms = ()

    def __init__(self, dataset, batch_size):
        self.dataset, self.batch_size = dataset, batch_size

    def __len__(self):
        return 10 ** 6


def bare_step(name: str, batch: dict[str, Any], arguments: dict[str, Any],
              device: str = "cpu") -> Callable[[], None]:
    """A function that runs one step of the bare computation."""
    import torch

    from utils.machine.precision import autocast_dtype
    model = _network(name, arguments).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4, fused=True)
    dtype = autocast_dtype("auto", torch.device(device))
    image = (batch["image"].to(device).float() / 255 - 0.5) / 0.25
    image = image.to(memory_format=torch.channels_last)
    label, weights = batch["label"].to(device).long(), model.output_weights

    def step():
        with torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None):
            outputs = model(image)
            loss = _weighted_loss(outputs, label, weights)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return step


def source_step(name: str, batch: dict[str, Any], arguments: dict[str, Any],
                device: str = "cpu") -> Callable[[], None]:
    """A function that runs one step of the loop of the sources."""
    import torch
    model = _network(name, arguments).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4, foreach=False)
    image = (batch["image"].to(device).float() / 255 - 0.5) / 0.25
    label, weights = batch["label"].to(device).long(), model.output_weights

    def step():
        optimizer.zero_grad()
        outputs = model(image)
        loss = _weighted_loss(outputs, label, weights)
        loss.backward()
        optimizer.step()
        loss.item()
        _plain_metrics(outputs["out"].detach(), label)
    return step


def _weighted_loss(outputs, label, weights):
    """The weighted sum of the cross-entropies of the outputs."""
    import torch.nn.functional as F
    first, *others = [weight * F.cross_entropy(outputs[key], label, ignore_index=255)
                      for key, weight in weights.items()]
    return sum(others, first)


def _plain_metrics(logits, label):
    """(number of correct pixels, areas per class), with one mask per class, each read at once."""
    prediction = logits.argmax(1)
    correct = (prediction == label).sum().item()
    areas = [((prediction == c) & (label == c)).sum().item()
             + ((prediction == c) | (label == c)).sum().item() for c in range(CLASSES)]
    return correct, areas


def _network(name, arguments):
    import torch

    from utils.config.registry import components
    torch.manual_seed(0)
    return components("models")[name](num_classes=CLASSES, **arguments)


def _blobs(batch, size):
    """Label maps (batch, *size) uint8 with large regions; the first 4 rows are ignored."""
    import torch
    coarse = torch.randint(0, CLASSES, (batch, 1, 16, 16)).float()
    label = torch.nn.functional.interpolate(coarse, size).squeeze(1).to(torch.uint8)
    label[:, :4] = 255
    return label


if __name__ == "__main__":
    main()
