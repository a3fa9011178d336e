"""The training step: ours, the bare computation, and the sources' plain loop.

    python -m benchmarks.step [--models ENet,UNet] [--rounds 5] [--size 256] [--batch 2]

bare    forward, loss, backward and fused optimizer step of the same network, in the
        same arithmetic and memory layout as ours, and nothing else.
source  the published loop: float32, contiguous, for-loop SGD, loss.item() and
        per-batch metrics (a softmax-free argmax, and masks over all classes) every step.

Goals: ours / bare at most 1.02; source / ours at least 2 (DeepLabV3+, PSPNet), 3.5 (U-Net).
"""
import argparse
import statistics

CASES = {"ENet": {}, "DeepLab": {"backbone": "resnet50"}, "PSPNet": {"backbone": "resnet50"},
         "UNet": {}}
CLASSES = 19


def main(argv=None):
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
    rows = [("network", "ours s", "bare s", "source s", "ours/bare", "source/ours")]
    for name in args.models.split(","):
        batch = batch_of(args.batch, args.size)
        seconds = interleaved({"ours": our_step(name, batch), "bare": _bare(name, batch),
                               "source": _source(name, batch)}, args.rounds)
        middle = {key: statistics.median(value) for key, value in seconds.items()}
        rows.append((name, *(f"{middle[k]:.3f}" for k in ("ours", "bare", "source")),
                     f"{ratio(seconds, 'ours', 'bare'):.3f}",
                     f"{ratio(seconds, 'source', 'ours'):.2f}"))
    table(f"one training step, batch {args.batch} of {args.size}x{args.size}, {CLASSES} classes, "
          f"CPU time, {args.threads} thread(s)", rows)


def batch_of(images, size):
    """A random training batch whose labels have large regions."""
    import torch
    return {"image": torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8),
            "label": _blobs(images, size), "id": ["a"] * images}


def our_step(name, batch):
    """A function that takes one step of our trainer on `batch`."""
    import tempfile

    import torch
    from trainer import Trainer
    from utils.config import load_config, resolve_config
    from utils.criterion import Criterion
    from utils.finite import FiniteGuard
    from utils.normalize import Normalize
    config = resolve_config(load_config("config.json", ["optimizer.type=SGD",
                                                        'optimizer.args={"lr":0.01,"momentum":0.9,'
                                                        '"weight_decay":1e-4}',
                                                        "loss=CrossEntropyLoss2d",
                                                        "trainer.val=false",
                                                        "trainer.tensorboard=false"]))
    model = _network(name)
    names = [str(i) for i in range(CLASSES)]
    dataset = _Dataset()
    dataset.class_names, dataset.palette = names, [[0, 0, 0]] * CLASSES
    loader = _Loader(dataset, len(batch["id"]))
    trainer = Trainer(model, Criterion(config["loss"], model.output_weights),
                      Normalize(dataset.mean, dataset.std), loader, None, config,
                      tempfile.mkdtemp(), torch.device("cpu"), **config["trainer"])
    trainer.train_model.train()
    trainer.window, trainer.window_steps = torch.zeros(()), 0
    trainer.guard = FiniteGuard(model, trainer.optimizer, trainer.device, False)

    def step():
        trainer._step([dict(batch)])
        trainer.step += 1
    return step


class _Dataset(list):
    """As much of a dataset: no samples, statistics, and attributes as they come."""

    mean, std = [0.5] * 3, [0.25] * 3


class _Loader:
    """As much of dataloader.loader.Loader as a trainer looks at before its first batch."""

    batch_transforms = ()

    def __init__(self, dataset, batch_size):
        self.dataset, self.batch_size = dataset, batch_size

    def __len__(self):
        return 10 ** 6


def _bare(name, batch):
    import torch
    import torch.nn.functional as F
    from utils.precision import autocast_dtype
    model = _network(name).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4, fused=True)
    dtype = autocast_dtype("auto", torch.device("cpu"))
    image = (batch["image"].float() / 255 - 0.5) / 0.25
    image = image.to(memory_format=torch.channels_last)
    label, weights = batch["label"].long(), model.output_weights

    def step():
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            outputs = model(image)
            loss = sum(weight * F.cross_entropy(outputs[key], label, ignore_index=255)
                       for key, weight in weights.items())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return step


def _source(name, batch):
    import torch
    import torch.nn.functional as F
    model = _network(name).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4, foreach=False)
    image = (batch["image"].float() / 255 - 0.5) / 0.25
    label, weights = batch["label"].long(), model.output_weights

    def step():
        optimizer.zero_grad()
        outputs = model(image)
        loss = sum(weight * F.cross_entropy(outputs[key], label, ignore_index=255)
                   for key, weight in weights.items())
        loss.backward()
        optimizer.step()
        loss.item()
        _plain_metrics(outputs["out"].detach(), label)
    return step


def _plain_metrics(logits, label):
    """Pixel accuracy and per-class areas by one mask per class, read back at once."""
    prediction = logits.argmax(1)
    correct = (prediction == label).sum().item()
    areas = [((prediction == c) & (label == c)).sum().item()
             + ((prediction == c) | (label == c)).sum().item() for c in range(CLASSES)]
    return correct, areas


def _network(name):
    import torch
    from utils.registry import components
    torch.manual_seed(0)
    return components("models")[name](num_classes=CLASSES, **CASES[name])


def _blobs(batch, size):
    """Label maps with large regions and one row of ignored pixels."""
    import torch
    coarse = torch.randint(0, CLASSES, (batch, 1, 16, 16)).float()
    label = torch.nn.functional.interpolate(coarse, (size, size)).squeeze(1).to(torch.uint8)
    label[:, :4] = 255
    return label


if __name__ == "__main__":
    main()
