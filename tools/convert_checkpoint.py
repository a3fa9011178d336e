"""Convert a published checkpoint to one for test.py and inference.py.

The new file contains the weights, input normalization, channel order, class names and colors;
nothing else is needed to use it. NAME may be left out: the names and shapes of the tensors mostly
tell the network. If they belong to several, their names are listed.

examples:
  python -m tools.convert_checkpoint --list
  python -m tools.convert_checkpoint model.safetensors segformer.pth --dataset ADE20K
  python -m tools.convert_checkpoint hrnet_ocr_w48 hrnet_ocr_cs_8162_torch11.pth ocr.pth \\
      --dataset Cityscapes
  python -m tools.convert_checkpoint paddle_mscale_ocrnet_w48 model.pdparams mscale.pth \\
      --dataset Cityscapes
  python -m tools.convert_checkpoint dinov2_vit_small_linear dinov2_vits14_ade20k_linear_head.pth \\
      dino.pth --encoder dinov2_vits14_pretrain.pth
  python inference.py -r ocr.pth -i photos -o segmented
  python test.py -r ocr.pth test_loader.args.data_dir=/data/cityscapes
"""
import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import console
from utils.cli.arguments import at_least, command_parser, require_folder
from utils.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import nn

    from models.weights.published import Published
    from utils.checkpoint.format import Checkpoint


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m tools.convert_checkpoint", __doc__)
    add = parser.add_argument
    add("name", nargs="?", help="name of the published network; see --list (default: the one that "
                                "has the tensors of the file)")
    add("source", nargs="?", help="the downloaded file: .pth, .pth.tar, .safetensors or .pdparams")
    add("out", nargs="?", help="the checkpoint to write")
    add("--dataset", help="dataset whose classes the network predicts; see train.py --list "
                          "datasets (default: numbered classes)")
    add("--data-dir", help="folder of that dataset, for test.py (default: data/NAME)")
    add("--num-classes", type=at_least(1), metavar="N",
        help="build the network for N classes and leave the published classifiers out")
    add("--encoder", metavar="FILE", help="the file of the encoder, where it is published apart "
                                          "from the head; see --list")
    add("--overwrite", action="store_true", help="replace OUT if it exists")
    add("--list", action="store_true", help="print every name with its files and scores")
    args = parser.parse_args(argv)
    if not args.list and not args.source:
        parser.error("give source and out, with or without a name before them, or --list")
    if not args.out:
        args.name, args.source, args.out = None, args.name, args.source
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    from models.weights.published import open_published, published
    if args.list:
        _print_list(published())
        return 0
    if not args.name:
        args.name = _name_of(args.source)
    require_folder(args.out)
    out = Path(args.out)
    if out.exists() and not args.overwrite:
        raise CheckpointError("the file exists already", str(out),
                              "choose another name or give --overwrite")
    network, entry = open_published(args.name, args.source, args.num_classes, args.encoder)
    if entry.imagenet:
        raise ConfigError(f"{args.name} is an ImageNet encoder, not a segmentation network",
                          fix=f"train from it: trainer.finetune_from={args.source}")
    if args.num_classes and entry.classes is None:
        raise ConfigError(f"{args.name} predicts borders and directions, not classes",
                          "--num-classes", "leave it out")

    from utils.checkpoint.load import model_from_checkpoint
    from utils.checkpoint.write import write_checkpoint
    checkpoint = make_checkpoint(args.name, network, args.dataset, args.data_dir, entry)
    checkpoint["versions"]["source"] = Path(args.source).name
    model_from_checkpoint(checkpoint, where=args.source)     # checks that the config rebuilds it
    write_checkpoint(out, checkpoint)
    norm = checkpoint["normalization"]
    console.notice(f"{len(checkpoint['model'])} tensors, {len(checkpoint['class_names'])} classes, "
                   f"input {norm['order']} / {norm['scale']:g} - {norm['mean']} / {norm['std']}")
    print(out)
    return 0


def _name_of(source):
    """Returns the name of the published network whose tensors are those of the file."""
    from models.weights.published import identify, published
    from utils.checkpoint.load import unwrap
    from utils.checkpoint.read import read_weights
    if source in published() and not Path(source).exists():
        raise CheckpointError(f"{source!r} is the name of a network, and there is only one file",
                              fix="give name, source and out")
    names = identify(unwrap(read_weights(source), source))
    if not names:
        raise CheckpointError("no published network has exactly these tensors", source,
                              "give the name of the network before the file: then the tensors that "
                              "do not fit are listed")
    if len(names) > 1:
        raise CheckpointError(f"these tensors fit several published networks: {', '.join(names)}",
                              source, "give one of these names before the file")
    console.notice(f"{source}: taken as {names[0]}")
    return names[0]


def make_checkpoint(name: str, network: "nn.Module", dataset: str | None = None,
                    data_dir: str | None = None,
                    form: "Published | None" = None) -> "Checkpoint":
    """Returns a Segwright checkpoint of a network that open_published(name, ...) returned.

    dataset: the type of the dataset whose classes the network predicts; None numbers the classes.
    form: that of the file; None: the first of the entry.
    Raises ConfigError if the numbers of classes differ.
    """
    import torch

    from models.weights.published import published
    from utils.checkpoint.format import FORMAT
    from utils.config.schema import resolve_config
    entry = form or published()[name]
    num_classes = _num_classes(network)
    arch = {"type": entry.network.__name__, "args": dict(entry.args)}
    names, palette, loaders = _classes(arch["type"], num_classes, dataset, data_dir)
    loss = getattr(entry.network, "loss", None) or "CrossEntropyLoss2d"
    normalize = {"mean": list(entry.mean), "std": list(entry.std), "order": entry.order,
                 "scale": entry.scale}
    config = resolve_config({
        "name": name, "arch": arch, **loaders, "loss": loss, "normalize": normalize,
        "optimizer": {"type": "SGD", "args": {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}},
        "trainer": {"epochs": 1}}, name)
    return {"format": FORMAT, "model": network.state_dict(), "ema": None, "config": config,
            "class_names": names, "palette": palette,
            "normalization": normalize,
            "activation": getattr(entry.network, "activation", None) or "softmax", "epoch": None,
            "versions": {"torch": str(torch.__version__), "published": name,
                         "score": entry.score}}


def _num_classes(network):
    """Returns the number of channels of the network's output."""
    import torch
    device = next(network.parameters()).device
    with torch.no_grad():
        return network.eval()(torch.zeros(1, 3, 64, 64, device=device)).shape[1]


def _classes(arch, num_classes, dataset, data_dir):
    """Returns (class names, palette, loader sections of the config)."""
    from utils.config.registry import components, lookup
    from utils.images.palette import class_palette
    from utils.segfix.offsets import offset_class_names, offset_colors
    if arch == "SegFix" or dataset is None:
        names = [f"class {i}" for i in range(num_classes)]
        palette = class_palette(names)
        if arch == "SegFix":
            directions = num_classes - 2
            names, palette = offset_class_names(directions), offset_colors(directions)
        args = {"data_dir": data_dir or "data", "class_names": names}
        section = {"type": "Folder", "args": args}
        return names, palette, {"train_loader": section, "val_loader": section}
    cls = lookup(dataset, components("datasets"), "--dataset")
    names, palette = getattr(cls, "class_names", None), getattr(cls, "palette", None)
    if not isinstance(names, list) or not isinstance(palette, list):
        raise ConfigError(f"the classes of {dataset} are known only when it is opened",
                          "--dataset", "leave --dataset out; the classes are then numbered")
    if len(names) != num_classes:
        raise ConfigError(f"the network has {num_classes} classes, {dataset} has {len(names)}",
                          "--dataset", "name the dataset that the checkpoint was trained on")
    folder = data_dir or f"data/{dataset.lower()}"
    train, val = _splits(cls)
    loaders = {f"{key}_loader": {"type": dataset, "args": {"data_dir": folder, "split": split}}
               for key, split in (("train", train), ("val", val))}
    return list(names), [list(map(int, color)) for color in palette], loaders


def _splits(cls):
    """Returns the names of the dataset's training and validation splits."""
    splits = list(getattr(cls, "splits", ("train", "val")))
    val = next((split for split in splits if "val" in split and "train" not in split), splits[-1])
    train = next((split for split in splits if "train" in split), splits[0])
    return train, val


def _print_list(entries):
    for name, entry in sorted(entries.items()):
        files = ", ".join(entry.files) or "no published file"
        if entry.encoder:
            files += f"; encoder {entry.encoder}"
        print(f"{name}: {files}" + (f" ({entry.score})" if entry.score else "")
              + (" [ImageNet encoder, for trainer.finetune_from]" if entry.imagenet else ""))


if __name__ == "__main__":
    sys.exit(console.run(main))
