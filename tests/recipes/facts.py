"""What a resolved config trains, in the words of the table published_numbers.txt."""
import copy
import functools
from typing import Any

from utils.config.load import load_stages
from utils.config.recipes import recipe_files
from utils.config.schema import resolve_config

COLUMNS = ("row", "data", "images", "crop", "scale", "network", "loss", "lr", "decay", "schedule",
           "length", "start", "amp", "seed", "input", "published")
RECIPES = {path.stem: path for path in recipe_files()}
LOADED = {name: load_stages(path) for name, path in RECIPES.items()}
PUBLISHED = {name: section for name, stages in LOADED.items() if (section := stages.published)}
# The stages of chains before the last one, which are no recipes of their own: name -> config.
STAGES = {stage["name"]: stage for stages in LOADED.values()
          for stage in stages[:-1] if stage["name"] not in RECIPES}


def resolved(name: str) -> dict[str, Any]:
    """The resolved config of a recipe, of a chain that of its last stage; or of a stage."""
    return copy.deepcopy(_resolved(name))


@functools.cache        # the tests of recipes are made from all of them several times
def _resolved(name):
    return resolve_config(STAGES[name] if name in STAGES else LOADED[name][-1], name)


def facts(config: dict) -> dict[str, str]:
    """The columns of the table, besides "row", of a resolved config."""
    loader, arch, trainer = config["train_loader"]["args"], config["arch"], config["trainer"]
    optimizer, augment = config["optimizer"], config["train_loader"]["args"]["augment"]
    gpus = config["n_gpu"]
    backbone = arch["args"].get("backbone") or arch["args"].get("variant")
    lr = optimizer["args"]["lr"]
    amp = trainer["amp"]
    crop = loader["crop_size"]
    return {
        "data": data(config["train_loader"]),
        "images": f"{gpus}x{loader['batch_size'] * trainer['accumulate']}"
                  + (" sync" if config["use_synch_bn"] else ""),
        "crop": f"{crop}x{crop}" if isinstance(crop, int) else "x".join(map(str, crop)),
        "scale": "x".join(map(str, loader["scale"])) if augment and loader["scale"] not in (
            True, False) else {True: "on", False: "-"}[loader["scale"]],
        "network": arch["type"] + (f" {backbone}" if backbone else ""),
        "loss": losses(config),
        "lr": f"{lr}" + (f", backbone {lr / 10:.10g}" if optimizer["differential_lr"] else "")
              + factors([one for one in optimizer["groups"] or ()
                         if one["lr_factor"] is not None])
              + (f", layers x{optimizer['layer_decay']}" if optimizer["layer_decay"] != 1 else ""),
        "decay": f"{optimizer['args']['weight_decay']:.10g}"
                 + "".join(f", not {kind}" for kind in optimizer["no_decay"] or ()),
        "schedule": schedule(config["lr_scheduler"]),
        "length": f"{trainer['epochs']} epochs" if trainer["epochs"] else
                  f"{trainer['iterations']} steps",
        "start": trainer["finetune_from"] or (
            "ImageNet" if arch["args"].get("pretrained") else "random"),
        "amp": amp if isinstance(amp, str) else "fp32",
        "seed": str(config["seed"]),
        "input": pixels(config.get("normalize")),
    }


def factors(groups: list[dict]) -> str:
    """The factors of the rates of groups; of more than two, without what they match."""
    if len(groups) > 2:
        return ", groups" + "".join(f" x{one['lr_factor']:g}" for one in groups)
    return "".join(f", {one['match']} x{one['lr_factor']:g}" for one in groups)


def pixels(normalize: dict | None) -> str:
    """The order of the channels and the statistics by which images are normalized."""
    if normalize is None:
        return "RGB of the data"
    mean = normalize["mean"]
    known = "ImageNet" if mean == [0.485, 0.456, 0.406] else " ".join(f"{one:.2f}" for one in mean)
    scale = ", undivided" if normalize["scale"] == 1 and normalize["std"] == [1, 1, 1] else ""
    return f"{normalize['order']} {known}{scale}"


def data(section: dict) -> str:
    """The datasets of a loader section with their splits."""
    args = section["args"]
    inside = args.get("parts") or [args.get("source", section)]
    return " + ".join(f"{one['type']} {one['args']['split']}" for one in inside)


def losses(config: dict) -> str:
    """The loss of each output with its weight; of one for all outputs, the loss alone."""
    loss = config["loss"]
    if isinstance(loss, list):
        weights = config["loss_weights"] or [1.0] * len(loss)
        return " + ".join(f"{weight:g} {one['type']}" for weight, one in
                          zip(weights, loss, strict=True))
    if "type" not in loss:
        return " + ".join(f"{one.get('weight', 1):g} {one['type']}" for one in loss.values())
    inside = loss["args"].get("losses")
    return " and ".join(one["type"] for one in inside) if inside else loss["type"]


def schedule(section: dict) -> str:
    """The schedule with the numbers that a document states."""
    args = section["args"]
    if section["type"] == "ConstantLR":
        return "constant"
    text = section["type"]
    if "power" in args:
        text += f" {args['power']:g} from {0 if args['from_zero'] else 1}"
    below = section.get("warmup") or {}
    steps = args.get("warmup_steps") or below.get("steps")
    text += f", warm-up {steps}" + (" below it" if below else "") if steps else ""
    if args.get("backbone_wait"):
        text += f", backbone {args['backbone_warmup_steps']} after {args['backbone_wait']}"
    return text
