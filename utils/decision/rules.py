"""Decision rules: from the logits of a network to labels or masks.

max       the class of the largest logit. Labels.
T         every class whose probability exceeds a threshold (strictly). Masks.
rankdice  per class, the mask with the largest expected Dice score (utils.decision.rankdice). Masks.
rankiou   the same for IoU. Masks.
rankdice_dep, rankiou_dep  the same where labels near by depend on each other
          (utils.decision.dependent). Masks.
offsets   only for SegFix networks, whose logits are not classes; it cannot be chosen (`rule_of`).

Masks are scored class by class: they may overlap, and a pixel may be in none of them. Every rule
also returns a label map without overlap, for files and pictures.
"""
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch

from utils.decision.dependent import check_dependence, rank_dependent
from utils.decision.posterior import KINDS, Posterior, build_posterior
from utils.decision.rankdice import check_settings, rank_dice
from utils.errors import ConfigError, unknown
from utils.losses.inverse import InverseSource
from utils.machine.tensors import LabelBatch, Logits, Masks
from utils.predict.largest_class import largest_class

if TYPE_CHECKING:       # it loads what a config is checked without
    from utils.decision.ensemble import Ensemble

UNASSIGNED = ("assign", "void")
RULES = ("max", "T", "rankdice", "rankiou", "rankdice_dep", "rankiou_dep")
EXPLAINED = {
    "max": "every pixel gets the class with the largest score of the network",
    "T": "a class is where its probability is above a threshold",
    "rankdice": "chooses the pixels of each class so that the expected Dice score of the image is "
                "largest",
    "rankiou": "chooses the pixels of each class so that the expected IoU of the image is largest",
    "rankdice_dep": "as rankdice, for pixels whose labels depend on their neighbors",
    "rankiou_dep": "as rankiou, for pixels whose labels depend on their neighbors"}
DEPENDENT = ("rankdice_dep", "rankiou_dep")
# `max` on the posterior, beside `max` on raw logits: where test.py compares both.
MAX_POSTERIOR = "max_posterior"
# Channels of a SegFix network: no border, border, then the directions (utils.segfix.offsets).
NO_BORDER, BORDER, FIRST_DIRECTION = 0, 1, 2


RuleName = Literal["max", "T", "rankdice", "rankiou", "rankdice_dep", "rankiou_dep"]


def predict_section(CoI: list | str = "all",
                    train: RuleName = "max", val: RuleName = "max", test: RuleName = "max",
                    posterior: Literal["auto", "raw"] | None = None, temperature: float = 1.0,
                    scale: list[float] | None = None, bias: list[float] | None = None,
                    threshold: float | list = 0.5,
                    smooth: float = 0.0, pruning: float = 0.5,
                    solver: Literal["auto", "exact", "rma", "published_truncated"] = "auto",
                    theta: float = 300.0, amplitude: float = 1.0,
                    unassigned: Literal["assign", "void"] = "assign",
                    published: bool = False, boundary: bool = False) -> dict:
    """The `predict` section of a config; this signature is its schema.

    CoI: classes of interest, the ones that image- and dataset-level means include; "all" or a list.
    train, val, test: the rule in training, in validation and in test.py.
    posterior: "auto" undoes what the loss of the output "out" did to the probabilities (class
        weights, focal factors, label smoothing: utils.losses.inverse), "raw" does not. null is
        "auto" for the rules that need probabilities, and "raw" for max.
    temperature: then divides the logits, before softmax or sigmoid (fitted by tools.calibrate).
    scale, bias: one number per class, for p_c^scale_c e^bias_c (tools.calibrate --per-class).
    threshold: of the rule T, one number or one per class.
    smooth, pruning: of rankdice, rankiou and the rules for dependent pixels, see
        `utils.decision.rankdice.rank_dice`.
    solver: of rankdice and rankiou, see there.
    theta, amplitude: of rankdice_dep and rankiou_dep: over how many pixels labels depend on each
        other, and how much, see `utils.decision.dependent`.
    unassigned: what a label map holds where a pixel is in no mask of a rule with masks: "assign" a
        class all the same, "void" ignore_index. Scores are those of the masks.
    published: image-level scores as the RankDice code computes them.
    boundary: also report boundary IoU and boundary F.
    """
    options = dict(locals())
    for phase in ("train", "val", "test"):
        if options[phase] not in RULES:
            raise ConfigError(unknown("rule", options[phase], RULES), f"predict.{phase}")
    if unassigned not in UNASSIGNED:
        raise ConfigError(unknown("value", unassigned, UNASSIGNED), "predict.unassigned")
    if unassigned == "void" and {train, val, test} == {"max"}:
        raise ConfigError('unassigned "void" has no effect on rule max, which gives every pixel a '
                          "class", "predict.unassigned", "set test to T, rankdice or rankiou")
    return options


def rule_of(model: torch.nn.Module | None, name: str) -> str:
    """The rule for a network: its attribute `decision` if it has one (SegFix), else `name`."""
    return getattr(model, "decision", None) or name


def takes_raw(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a rule decides on raw logits: `max`, unless the posterior is asked for."""
    return name == "max" and options.get("posterior") != "auto"


def is_idle(decision: "Decision") -> bool:
    """Whether a rule is MAX_POSTERIOR and decides like `max`."""
    return decision.name == MAX_POSTERIOR and decision.largest_logit


def require_not_idle(decision: "Decision"):
    """Raise ConfigError for a rule that `is_idle`."""
    if is_idle(decision):
        raise ConfigError(f"the rule {MAX_POSTERIOR} is the same as max: nothing that the loss did "
                          "changes which class is the most probable one", "--predict",
                          "leave it out")


def build_decision(name: str, activation: str = "softmax", options: dict | None = None,
                   inverse: InverseSource | None = None, ignore_index: int = 255,
                   ensemble: "Ensemble | None" = None) -> "Decision":
    """The rule called `name`; `options` is the `predict` section, every key optional.

    activation: "softmax" or "sigmoid", the one that the loss of the network uses; "scores" if the
        network gives scores in place of logits (utils.losses.scores).
    inverse: of that loss; None: the logits are taken as they are.
    ignore_index: what label maps hold where a pixel has no class, with unassigned "void".
    ensemble: the one whose logits it decides on; then inverse has no effect.
    Raises ConfigError for an unknown name and for options out of range.
    """
    if name == OffsetDecision.name:
        return OffsetDecision()
    if name not in (*RULES, MAX_POSTERIOR):
        raise ConfigError(unknown("rule", name, RULES), "predict")
    if activation not in KINDS:
        raise ConfigError(unknown("activation", activation, tuple(KINDS)), "checkpoint")
    options = options or {}
    if takes_raw(name, options):
        build_posterior({**options, "posterior": "raw"}, activation)    # raises for wrong options
        return MaxDecision(ensemble.posterior(raw=True) if ensemble else None)
    posterior = build_posterior(options, activation, inverse, ensemble)
    if name in ("max", MAX_POSTERIOR):
        return MaxDecision(posterior, name)
    if name == "T":
        decision = ThresholdDecision(options.get("threshold", 0.5), posterior)
    else:
        rule = DependentDecision if name in DEPENDENT else RankDecision
        settings = {key: options[key] for key in rule.options if key in options}
        decision = rule(name, posterior, settings)
    decision.void = ignore_index if options.get("unassigned") == "void" else None
    return decision


class Decision:
    """Turns logits (N, C, H, W) into labels (N, H, W) or, if `masks`, bool masks (N, C, H, W).

    Logits of volumes are (N, C, D, H, W), and their labels (N, D, H, W).
    Labels are uint8 up to 255 classes, int16 above.
    void: what `label_map` holds where a pixel is in no mask; None: a class all the same.
    """

    name: str
    masks: bool
    void: int | None = None
    largest_logit = False       # whether it is the class of the largest logit, and nothing else

    def __call__(self, logits: Logits) -> LabelBatch | Masks:
        raise NotImplementedError

    def labels(self, logits: Logits) -> LabelBatch:
        """One class (N, H, W) for every pixel, also by a rule that returns masks."""
        raise NotImplementedError

    def label_map(self, logits: Logits, masks: Masks | None = None) -> LabelBatch:
        """The labels (N, H, W) for a file: `labels`, but `void` where a pixel is in no mask.

        masks: what the rule decides on the logits, if the caller has them.
        Raises ConfigError if the dtype of the labels cannot hold `void`.
        """
        labels = self.labels(logits)
        if self.void is None:
            return labels
        masks = self(logits) if masks is None else masks
        if not masks.shape[1] <= self.void <= torch.iinfo(labels.dtype).max:
            raise ConfigError(f"label maps of {masks.shape[1]} classes cannot hold {self.void}, "
                              "the ignore_index, for pixels without a class",
                              "predict.unassigned", f"set ignore_index to {masks.shape[1]} .. "
                              f"{torch.iinfo(labels.dtype).max}, or unassigned to \"assign\"")
        return labels.masked_fill_(~masks.any(1), self.void)

    def describe(self) -> dict[str, Any]:
        """The settings that change what the rule decides, for reports."""
        return {}


class MaxDecision(Decision):
    """The class of the largest logit or score; neither activation nor temperature changes it.

    posterior: then the most probable class of it, as of the mean of an ensemble.
    """

    masks = False

    def __init__(self, posterior: Posterior | None = None, name: str = "max"):
        self.name = name
        self.posterior = posterior if posterior and posterior.reorders else None
        self.largest_logit = self.posterior is None

    def __call__(self, logits: Logits) -> LabelBatch:
        return largest_class(self.posterior.logits(logits) if self.posterior else logits)

    labels = __call__

    def describe(self) -> dict[str, Any]:
        """What is done to the logits before they are compared."""
        return self.posterior.describe() if self.posterior else {}


class OffsetDecision(Decision):
    """SegFix, logits (N, 2 + D, H, W): "no border", or the direction of a border pixel."""

    name, masks = "offsets", False

    def __call__(self, logits: Logits) -> LabelBatch:
        return offset_classes(logits)

    labels = __call__


class ThresholdDecision(Decision):
    """Every class whose probability is above its threshold.

    In the label map, each pixel gets the class that is furthest above its threshold.
    """

    name, masks = "T", True

    def __init__(self, threshold: float | list = 0.5, posterior: Posterior | None = None):
        values = list(threshold) if isinstance(threshold, (list, tuple)) else [threshold]
        if not all(0 <= t <= 1 for t in values):
            raise ConfigError(f"threshold must lie in 0..1, got {threshold}", "predict.threshold")
        self.threshold = values
        self.posterior = posterior or Posterior()
        self._values: torch.Tensor | None = None    # the thresholds, on the device last used

    def __call__(self, logits: Logits) -> Masks:
        probs = self.posterior(logits)
        return probs > self._thresholds(probs)

    def labels(self, logits: Logits) -> LabelBatch:
        if len(set(self.threshold)) == 1 and not self.posterior.reorders:
            return largest_class(logits)
        probs = self.posterior(logits)
        return largest_class(probs.sub_(self._thresholds(probs)))

    def describe(self) -> dict[str, Any]:
        """threshold (a number, or one per class), and what is done to the logits."""
        threshold = self.threshold[0] if len(self.threshold) == 1 else self.threshold
        return {"threshold": threshold, **self.posterior.describe()}

    def _thresholds(self, probs):
        """A number, or (C, 1, 1) on the device of `probs`; (C, 1, 1, 1) for volumes."""
        if len(self.threshold) == 1:
            return self.threshold[0]
        if len(self.threshold) != probs.shape[1]:
            raise ConfigError(f"{len(self.threshold)} thresholds for {probs.shape[1]} classes",
                              "predict.threshold", "give one number, or one per class")
        if self._values is None or self._values.device != probs.device:
            self._values = torch.tensor(self.threshold, device=probs.device)
        return self._values.view(-1, *[1] * (probs.ndim - 2))


class RankDecision(Decision):
    """The masks with the largest expected Dice or IoU; needs calibrated probabilities.

    name: "rankdice" or "rankiou". settings: arguments of `rank_dice`.
    """

    masks = True
    options = ("smooth", "pruning", "solver")       # the keys of the `predict` section it uses

    def __init__(self, name: str, posterior: Posterior | None = None,
                 settings: dict | None = None):
        self.name, self.posterior = name, posterior or Posterior()
        metric = "dice" if name.startswith("rankdice") else "iou"
        self.settings: dict[str, Any] = {"metric": metric, **(settings or {})}
        self._check()

    def _check(self):
        check_settings(**self.settings)

    def _solve(self, probs, overlap):
        return rank_dice(probs, overlap=overlap, **self.settings)

    def __call__(self, logits: Logits) -> Masks:
        return self._solve(self.posterior(logits), True)

    def labels(self, logits: Logits) -> LabelBatch:
        return self._solve(self.posterior(logits), False)

    def describe(self) -> dict[str, Any]:
        """What is done to the logits, and the settings of the solver that were given."""
        settings = {key: value for key, value in self.settings.items() if key != "metric"}
        return {**self.posterior.describe(), **settings}


class DependentDecision(RankDecision):
    """The same for labels that depend on each other near by.

    name: "rankdice_dep" or "rankiou_dep". settings: arguments of `rank_dependent`.
    """

    options = ("smooth", "pruning", "theta", "amplitude")

    def _check(self):
        check_settings(**{key: value for key, value in self.settings.items()
                          if key not in ("theta", "amplitude")})
        check_dependence(**{key: value for key, value in self.settings.items()
                            if key in ("theta", "amplitude")})

    def _solve(self, probs, overlap):
        return rank_dependent(probs, overlap=overlap, **self.settings)


def offset_classes(logits: Logits) -> LabelBatch:
    """The channel that describes each pixel, by the logits (N, 2 + D, H, W) of a SegFix network.

    returns: uint8 (N, H, W): NO_BORDER, or FIRST_DIRECTION + the index of the largest direction.
        BORDER, which has no direction, does not occur.
    """
    direction = logits[:, FIRST_DIRECTION:].max(dim=1).indices + FIRST_DIRECTION
    # Multiplying by False gives NO_BORDER, which is 0.
    return (direction * (logits[:, BORDER] > logits[:, NO_BORDER])).to(torch.uint8)
