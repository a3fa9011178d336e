"""Class weights: the published Cityscapes table, and rules over pixel counts.

Every rule is normalised to mean 1, n_c is the number of labelled training
pixels of class c and p_c its share:

log     1 / ln n_c. The Cityscapes table that OCNet, openseg, HRNet-Semantic-
        Segmentation and MIC-DKFZ share follows this rule.
enet    1 / ln(1.02 + p_c). Paszke et al., ENet, 2016, arXiv:1606.02147.
median  median(f) / f_c, where f_c is the share of class c among the pixels of
        the images that hold it (without that: among all pixels). Eigen and
        Fergus, ICCV 2015, arXiv:1411.4734.

A class without a single pixel has no weight by these rules and gets 0: no
labelled pixel can ask for it.
"""
import json
import math
import statistics
from pathlib import Path

import torch

from utils.errors import ConfigError

CITYSCAPES_TABLE = (0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023,
                    0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507)
RULES = ("log", "enet", "median")


def class_weights(weight: list | tuple | str | None,
                  class_pixels: list | tuple | str | None = None) -> torch.Tensor | None:
    """The weights (C,) in float64 that a config asks for; None for none.

    weight: numbers, "table", one of RULES, or None.
    class_pixels: for a rule, the pixels of every class, or the path of the JSON
    file that `python -m tools.class_statistics` writes.
    """
    if isinstance(weight, str) and weight in RULES:
        if class_pixels is None:
            raise ConfigError(f'the weights "{weight}" are computed from pixel counts, and '
                              "class_pixels is missing",
                              fix="count with `python -m tools.class_statistics` and name its file "
                                  'in "class_pixels"')
        return _tensor(rule_weights(weight, **_counts(class_pixels)))
    if class_pixels is not None:
        raise ConfigError("class_pixels has no effect without a rule",
                          fix=f'set weight to one of {", ".join(RULES)}')
    if weight is None:
        return None
    if isinstance(weight, str):
        if weight != "table":
            raise ConfigError(f"unknown class weights {weight!r}",
                              fix=f'give a list of numbers, "table", or one of {", ".join(RULES)}')
        return _tensor(CITYSCAPES_TABLE)
    return _tensor(weight)


def rule_weights(rule: str, pixels: list, images_with: list | None = None,
                 pixels_in_images_with: list | None = None) -> list[float]:
    """One weight per class from pixel counts, mean 1 over the classes that occur.

    pixels: labelled pixels of every class. pixels_in_images_with: labelled
    pixels of the images that hold the class ("median" only); images_with is
    their number, used when the former is not known (images of one size).
    """
    total = sum(pixels)
    if total <= 0:
        raise ConfigError("no class has a pixel: weights cannot be computed")
    if rule == "log":
        # One pixel has ln 1 = 0; two is the smallest count the rule is defined for.
        raw = [1 / math.log(max(n, 2)) if n else 0.0 for n in pixels]
    elif rule == "enet":
        raw = [1 / math.log(1.02 + n / total) if n else 0.0 for n in pixels]
    elif rule == "median":
        base = pixels_in_images_with or images_with or [1] * len(pixels)
        shares = [n / b if n else 0.0 for n, b in zip(pixels, base, strict=True)]
        middle = statistics.median(share for share in shares if share)
        raw = [middle / share if share else 0.0 for share in shares]
    else:
        raise ConfigError(f"unknown rule {rule!r} for class weights. Known: {', '.join(RULES)}.")
    mean = sum(raw) / sum(n > 0 for n in pixels)
    return [value / mean for value in raw]


def _counts(class_pixels):
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
        raise ConfigError('class_pixels holds no list "pixels" of whole numbers', str(path),
                          fix="write it with `python -m tools.class_statistics`") from error


def _tensor(values):
    weights = torch.tensor([float(value) for value in values], dtype=torch.float64)
    if not torch.isfinite(weights).all() or (weights < 0).any():
        raise ConfigError(f"class weights must be finite and not negative, found {list(values)}")
    return weights
