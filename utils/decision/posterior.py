"""From the logits of a network to the probabilities on which decisions rest.

1. What the loss did to the logits is undone (utils.losses.inverse), unless `predict.posterior` is
   "raw" or the loss has no inverse.
2. The logits are divided by the temperature, which tools.calibrate fits on the result of 1.
3. Softmax over the classes, or sigmoid.
4. Vector scaling, if there is one: p_c becomes proportional to p_c^scale_c e^bias_c. Guo et al.,
   ICML 2017; of the logarithms of p and not of the logits, which have an arbitrary constant in
   every pixel (Kull et al., NeurIPS 2019, arXiv:1910.12656, with a diagonal matrix). Of a sigmoid:
   the logit times scale plus bias.

A network may give scores instead of logits (utils.losses.scores). Their shares of the sum are the
probabilities, and the logarithms of these take the place of logits in 1 to 4.

Over several views (scales, mirror images, windows) the network's answer is averaged first and then
inverted once. So the temperature is fitted on what it divides, and every rule, `max` on raw logits
among them, decides on one prediction. For class weights and a mean of logits both orders are the
same.
"""
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from utils.cli.console import notice_once
from utils.errors import ConfigError
from utils.losses.inverse import Inverse, InverseSource, NoInverse
from utils.losses.scores import log_shares, shares
from utils.machine.precision import full_precision
from utils.machine.tensors import Logits

if TYPE_CHECKING:
    from utils.decision.ensemble import Ensemble

CHOICES = ("auto", "raw")
SMALLEST_TEMPERATURE = 1e-6     # logits divided by less overflow
# What a network gives, and how it becomes probabilities.
KINDS = {"softmax": "softmax of the logits", "sigmoid": "sigmoid of the logits",
         "scores": "shares of the scores"}


class Posterior:
    """Logits (N, C, ...) -> probabilities of the same shape, float32 (float64 stays).

    activation: "softmax" or "sigmoid"; "scores" if a network gives scores in place of logits.
    temperature: divides the logits. inverse: of the loss.
    scale, bias: of the vector scaling, one number per class.
    Raises ConfigError for a temperature or a vector that is not usable.
    """

    def __init__(self, activation: str = "softmax", temperature: float = 1.0,
                 inverse: Inverse | None = None, scale: Sequence[float] | None = None,
                 bias: Sequence[float] | None = None):
        if not temperature >= SMALLEST_TEMPERATURE:
            raise ConfigError(f"temperature must be at least {SMALLEST_TEMPERATURE}, got "
                              f"{temperature}", "predict.temperature")
        for key, values in (("scale", scale), ("bias", bias)):
            if values is not None and not all(abs(one) < float("inf") for one in values):
                raise ConfigError(f"{key} must be finite numbers, got {list(values)}",
                                  f"predict.{key}")
        if scale is not None and not all(one > 0 for one in scale):
            raise ConfigError(f"scale must be positive numbers, got {list(scale)}",
                              "predict.scale")
        self.activation, self.temperature = activation, temperature
        self.inverse = inverse if inverse is not None and inverse.active else None
        self.scale, self.bias = scale, bias

    def __call__(self, logits: Logits) -> torch.Tensor:
        if not self.active:
            return probabilities(logits, self.activation)
        return probabilities(self.logits(logits), self.of_logits)

    def logits(self, logits: Logits) -> Logits:
        """Logits whose softmax, or sigmoid, are the probabilities."""
        logits = as_logits(logits, self.activation)
        logits = full_precision(self.inverse(logits) if self.inverse else logits)
        if self.temperature != 1.0:
            logits = logits / self.temperature
        if not self.has_vector:
            return logits
        if self.of_logits == "softmax":
            logits = logits.log_softmax(1)
        if self.scale is not None:
            logits = logits * self._of_classes("scale", self.scale, logits)
        return logits if self.bias is None else \
            logits + self._of_classes("bias", self.bias, logits)

    @property
    def of_logits(self) -> str:
        """What turns `logits` into the probabilities: "softmax" or "sigmoid"."""
        return of_logits(self.activation)

    @property
    def has_vector(self) -> bool:
        """Whether there is a vector scaling."""
        return bool(self.scale or self.bias)

    @property
    def reorders(self) -> bool:
        """Whether another class than that of the largest logit may become the most probable."""
        return self.has_vector or bool(self.inverse and self.inverse.reorders)

    @property
    def active(self) -> bool:
        """Whether anything is done to the logits before softmax or sigmoid."""
        return bool(self.inverse or self.temperature != 1.0 or self.scale or self.bias)

    @property
    def undone(self) -> str:
        """What of the loss is undone, in words; "" if nothing is."""
        return self.inverse.describe() if self.inverse else ""

    @property
    def text(self) -> str:
        """What is done to the logits, in words: "class weights undone, temperature 1.31"."""
        parts = [self.undone] if self.inverse else []
        if self.temperature != 1.0:
            parts.append(f"temperature {self.temperature:.4g}")
        if self.scale is not None or self.bias is not None:
            parts.append("two numbers per class (vector scaling)")
        return ", ".join(parts) or KINDS[self.activation]

    def describe(self) -> dict[str, Any]:
        """What is done to the logits, for reports; "posterior" says what of the loss is undone."""
        inverse = {"posterior": self.undone} if self.inverse else {}
        vector = {key: list(values) for key, values in (("scale", self.scale), ("bias", self.bias))
                  if values is not None}
        return {"temperature": self.temperature, **inverse, **vector}

    def _of_classes(self, key, values, logits):
        """The numbers of a key of `predict`, shaped like the classes of logits (N, C, ...)."""
        if len(values) != logits.shape[1]:
            raise ConfigError(f"{len(values)} numbers for {logits.shape[1]} classes",
                              f"predict.{key}", "give one per class (tools.calibrate --per-class)")
        return torch.tensor(values, dtype=logits.dtype, device=logits.device).view(
            -1, *[1] * (logits.ndim - 2))


def build_posterior(options: Mapping[str, Any], activation: str = "softmax",
                    inverse: InverseSource | None = None,
                    ensemble: "Ensemble | None" = None) -> Posterior:
    """The Posterior for a `predict` section, every key optional.

    inverse: of the loss (utils.training.criterion.Criterion.inverse). A notice says once why there
    is none, and which classes were not trained.
    ensemble: the one whose logits are decided on; then it is that of its mean.
    """
    if ensemble:
        return ensemble.posterior()
    setting = options.get("posterior")
    if setting not in (None, *CHOICES):
        raise ConfigError(f"expected \"auto\", \"raw\" or null, found {setting!r}",
                          "predict.posterior")
    found = inverse() if inverse and setting != "raw" else None
    if isinstance(found, NoInverse):
        notice_once("probabilities are used as the network gives them; what its loss did to them "
                    f"cannot be undone: {found.reason} (docs/rankdice.md)")
        found = None
    if found and found.reorders and found.unknown:
        classes = ", ".join(map(str, found.unknown))
        notice_once(f"the class weight of {classes} is 0, which has no inverse: the logit of such "
                    "a class stays as it is")
    return Posterior(activation, options.get("temperature", 1.0), found, options.get("scale"),
                     options.get("bias"))


def of_logits(activation: str) -> str:
    """The function of the logits that `as_logits` returns: "sigmoid", or else "softmax"."""
    return "sigmoid" if activation == "sigmoid" else "softmax"


def as_logits(output: torch.Tensor, activation: str = "softmax") -> Logits:
    """The logits (N, C, ...) of what a network gave: of scores the logarithms of their shares."""
    return log_shares(output) if activation == "scores" else output


def probabilities(logits: torch.Tensor, activation: str = "softmax",
                  temperature: float = 1.0) -> torch.Tensor:
    """Softmax over the classes, or sigmoid, of logits (N, C, ...) / temperature.

    Of "scores" their shares, with a temperature the softmax of the logarithms of these divided by
    it. float64 stays float64; any other float becomes float32.
    """
    if activation == "scores" and temperature == 1.0:
        return shares(logits)
    logits = full_precision(as_logits(logits, activation))
    if temperature != 1.0:
        logits = logits / temperature
    # A softmax over strided channels is several times slower than a copy and a softmax.
    logits = logits.contiguous()
    return logits.sigmoid() if activation == "sigmoid" else logits.softmax(1)
