"""Class weights: the published Cityscapes table, and rules over pixel counts.

Below, n_c is the number of labeled training pixels of class c and p_c its share of all labeled
pixels. The weights of every rule are normalized to mean 1:

log     1 / ln n_c. The Cityscapes table that OCNet, openseg, HRNet-Semantic-
        Segmentation and MIC-DKFZ share follows this rule.
enet    1 / ln(1.02 + p_c). Paszke et al., ENet, 2016, arXiv:1606.02147.
median  median(f) / f_c, where f_c is the share of class c among the pixels of the images that
        contain it (if these are not known, among all pixels). Eigen and Fergus, ICCV 2015,
        arXiv:1411.4734.

A class without pixels gets the weight 0, because the rules are not defined for it. Its weight is
never used.
"""
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch

from utils.errors import ConfigError

CITYSCAPES_TABLE = (0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023,
                    0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507)
WEIGHT_RULES = ("log", "enet", "median")


def class_weights(weight: list | tuple | str | None,
                  class_pixels: list | tuple | str | None = None, at_least: int = 1) \
        -> torch.Tensor | None:
    """The weights (C,) float64 for the arguments of a loss; None if `weight` is None.

    weight: numbers, "table", one of WEIGHT_RULES, or None.
    class_pixels: for a rule, the number of pixels of each class, or the path of the JSON
    file that `python -m tools.class_statistics` writes. at_least: how many classes must have a
    weight above 0; a softmax trained on the pixels of one class only predicts it everywhere.
    Raises ConfigError for an unknown rule, unreadable counts, weights that are negative or not
    finite, and too few classes with a weight.
    """
    weights = _weights(weight, class_pixels)
    if weights is None:
        return None
    if not torch.isfinite(weights).all() or (weights < 0).any():
        raise ConfigError(f"class weights must be finite and not negative, found "
                          f"{weights.tolist()}")
    positive = int((weights > 0).sum())
    if positive < min(at_least, len(weights)) or not positive:
        raise ConfigError(f"{positive or 'none'} of the {len(weights)} class weights is above 0: "
                          "the network would learn " + ("to predict that class everywhere"
                                                        if positive else "nothing"))
    return weights


def with_numbers(section: Any, where: str = "loss") -> Any:
    """A copy of a loss section of a resolved config in which class weights are numbers.

    So the config of a run says what it was trained with, also when the file of pixel counts has
    changed or is gone. where: the place of the section, for messages. Raises ConfigError as
    `class_weights` does.
    """
    if isinstance(section, list):
        return [with_numbers(one, f"{where}[{i}]") for i, one in enumerate(section)]
    if not isinstance(section, dict):
        return section
    changed = {key: with_numbers(value, f"{where}.{key}") for key, value in section.items()}
    for key in ("weight", "alpha"):
        rule = changed.get(key)
        # Another text is a value of a loss that is not of this package.
        if isinstance(rule, str) and ("class_pixels" in changed
                                      or rule in ("table", *WEIGHT_RULES)):
            try:
                weights = class_weights(changed[key], changed.get("class_pixels"))
            except ConfigError as error:
                raise ConfigError(error.what, error.where or f"{where}.{key}",
                                  error.fix) from None
            assert weights is not None, "a text is not None"
            changed[key] = weights.tolist()
            if "class_pixels" in changed:
                changed["class_pixels"] = None
    return changed


def _weights(weight, class_pixels):
    """The weights (C,) float64, of any value; None if `weight` is None."""
    if isinstance(weight, str) and weight in WEIGHT_RULES:
        if class_pixels is None:
            raise ConfigError(f'the weights "{weight}" are computed from pixel counts, and '
                              "class_pixels is missing",
                              fix="count with `python -m tools.class_statistics` and name its file "
                                  'in "class_pixels"')
        return _tensor(rule_weights(weight, **_counts(class_pixels)))
    if class_pixels is not None:
        raise ConfigError("class_pixels has no effect without a rule",
                          fix=f'set weight to one of {", ".join(WEIGHT_RULES)}')
    if weight is None:
        return None
    if isinstance(weight, str):
        if weight != "table":
            raise ConfigError(f"unknown class weights {weight!r}",
                              fix='give a list of numbers, "table", or one of '
                                  + ", ".join(WEIGHT_RULES))
        return _tensor(CITYSCAPES_TABLE)
    return _tensor(weight)


def rule_weights(rule: str, pixels: list, images_with: list | None = None,
                 pixels_in_images_with: list | None = None) -> list[float]:
    """One weight per class from pixel counts, with mean 1 over the classes that occur.

    rule: one of WEIGHT_RULES. pixels: the number of labeled pixels of each class.
    For "median" also: pixels_in_images_with, the number of labeled pixels in the images that
    contain the class; if it is not known, images_with, the number of these images, which assumes
    that all images have the same size.
    Raises ConfigError for an unknown rule, and if no class has a pixel.
    """
    total = sum(pixels)
    if total <= 0:
        raise ConfigError("no class has a pixel: weights cannot be computed")
    if rule == "log":
        # ln 1 = 0, so the rule is not defined for a class of one pixel: it counts as two.
        raw = [1 / math.log(max(n, 2)) if n else 0.0 for n in pixels]
    elif rule == "enet":
        raw = [1 / math.log(1.02 + n / total) if n else 0.0 for n in pixels]
    elif rule == "median":
        base = pixels_in_images_with or images_with or [1] * len(pixels)
        shares = [n / b if n else 0.0 for n, b in zip(pixels, base, strict=True)]
        middle = statistics.median(share for share in shares if share)
        raw = [middle / share if share else 0.0 for share in shares]
    else:
        raise ConfigError(f"unknown rule {rule!r} for class weights. Known: "
                          f"{', '.join(WEIGHT_RULES)}.")
    mean = sum(raw) / sum(n > 0 for n in pixels)
    return [value / mean for value in raw]


def _counts(class_pixels: list | tuple | str) -> dict[str, list]:
    """The keyword arguments of `rule_weights` from a list of pixel counts or a JSON file."""
    if not isinstance(class_pixels, str):
        return {"pixels": list(class_pixels)}
    path = Path(class_pixels)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {"pixels": [int(n) for n in content["pixels"]],
                "images_with": content.get("images_with"),
                "pixels_in_images_with": content.get("pixels_in_images_with")}
    except OSError as error:
        raise ConfigError(f"cannot read class_pixels: {error.strerror}", str(path),
                          fix="write it with `python -m tools.class_statistics`") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError('class_pixels does not contain a list "pixels" of whole numbers',
                          str(path),
                          fix="write it with `python -m tools.class_statistics`") from error


def _tensor(values):
    return torch.tensor([float(value) for value in values], dtype=torch.float64)
