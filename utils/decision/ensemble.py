"""Several networks as one: the mean of their probabilities.

Every network predicts in its own way (size, scales, windows, normalization), and its own posterior
(utils.decision.posterior) is taken before the mean, because each was trained with its own loss and
has its own temperature. The decision layer gets logits whose softmax, or sigmoid, is the mean.
Lakshminarayanan et al., NeurIPS 2017, arXiv:1612.01474; Dietterich, MCS 2000.

The rule `max` takes raw logits unless told otherwise, and the other rules the posterior. So there
are up to two means of an image, and an ensemble answers with both, one after the other along the
classes: (N, 2 C, H, W). Each `MeanPosterior` takes its own part. If no network has anything to
undo or a temperature, both are the same, and there is one.
"""
import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

import torch

from utils.decision.posterior import KINDS, Posterior, build_posterior, of_logits, probabilities
from utils.decision.rules import takes_raw
from utils.errors import ConfigError, shown
from utils.images.types import Image
from utils.losses.inverse import Inverse, InverseSource, NoInverse
from utils.machine.tensors import ImageBatch, LabelBatch, Logits, Masks
from utils.predict.open_model import OpenModel
from utils.predict.predictor import Predictor, Rule
from utils.predict.windows import BLOCK_BYTES

# Keys of `predict` on the decision and the scores, which are taken on the mean: those of the first
# network hold.
OF_THE_MEAN = ("test", "threshold", "smooth", "pruning", "solver", "theta", "amplitude",
               "unassigned", "CoI", "published", "boundary")


class Member(NamedTuple):
    """One network of an ensemble.

    predictor: images -> logits. make_posterior: gives the posterior of these; called once, and only
    if it is needed, because it may read files and print notices. about: its path and so on, for
    reports. activation: "softmax", "sigmoid" or "scores", of what the predictor returns.
    """

    predictor: Predictor
    make_posterior: Callable[[], Posterior]
    about: dict[str, Any]
    activation: str = "softmax"


class Ensemble:
    """The mean probability of several networks; used like a utils.predict.predictor.Predictor.

    members: at least two. device: of the networks. activation: "sigmoid", or "softmax" for
    networks whose probabilities sum to 1, also those that give scores.
    inverse: what may be undone of the losses, for the check of --posterior.

    The sums exist once, and beside them the logits of one network at a time. All networks stay on
    the device. Raises ConfigError if labels would be scored at different sizes.
    """

    def __init__(self, members: Sequence[Member], device: torch.device | str,
                 activation: str = "softmax", inverse: InverseSource | None = None):
        self.members, self.device, self.activation = list(members), device, activation
        self.inverse = inverse
        self.finite = torch.ones(0, dtype=torch.bool)
        self._wanted: list[bool] = []       # for each mean that is needed: whether a raw one
        _require_one_size(self.members)

    def posterior(self, raw: bool = False) -> "MeanPosterior":
        """The posterior of the mean, which is then part of what the ensemble returns.

        raw: of the networks' own probabilities, as they are. Every rule and output that decides on
        the ensemble needs one of these, made before the first image.
        """
        if raw not in self._wanted:
            self._wanted.append(raw)
        return MeanPosterior(self, raw)

    def __call__(self, image: ImageBatch) -> Logits:
        """uint8 (N, 3, H, W) RGB -> float32 logits (N, C, H, W), or of two parts (N, 2 C, H, W)."""
        total, finite = None, None
        with torch.inference_mode():
            for number, member in enumerate(self.members):
                logits = member.predictor(image.to(member.predictor.takes(self.device)))
                own = member.predictor.finite
                finite = own if finite is None else finite & own
                total = self._added(total, number, logits)
                del logits      # before the next network: one at a time
            assert total is not None and finite is not None
            self.finite = finite
            return self._as_logits(total)

    def decide(self, image: ImageBatch, rule: Rule) -> LabelBatch | Masks:
        """rule(self(image)): labels (N, H, W) or masks (N, C, H, W) of uint8 images (N, 3, H, W).
        """
        return rule(self(image))

    def labels(self, image: ImageBatch, rule: Rule) -> LabelBatch:
        """rule.labels(self(image)): one class (N, H, W) for every pixel."""
        return rule.labels(self(image))

    @functools.cached_property
    def posteriors(self) -> list[Posterior]:
        """That of each network."""
        return [member.make_posterior() for member in self.members]

    @property
    def differ(self) -> bool:
        """Whether the mean of the posteriors is another one than that of raw probabilities."""
        return any(posterior.active for posterior in self.posteriors)

    @property
    def parts(self) -> int:
        """How many maps (N, C, H, W) of logits it returns."""
        return len(self._parts)

    @property
    def _parts(self) -> list[bool]:
        """For each of these, whether it is of raw probabilities."""
        return [False] if len(self._wanted) == 2 and not self.differ else self._wanted

    @property
    def resizes(self) -> bool:
        """Whether images are resized on a CPU before a network sees them."""
        return any(member.predictor.resizes for member in self.members)

    def takes(self, device: torch.device | str) -> torch.device | str:
        """The device on which images are best: the CPU if a network resizes them, else `device`."""
        return "cpu" if self.resizes else device

    def as_scored(self, labels: LabelBatch) -> LabelBatch:
        """Labels (N, H, W) at the size of the logits of their images."""
        return self.members[0].predictor.as_scored(labels)

    def require_finite(self, names: Sequence[str]):
        """Raise NumericalError for the first image with logits of a network that are not finite."""
        for member in self.members:
            member.predictor.require_finite(names)

    def cuts_alike(self, height: int, width: int) -> bool:
        """Whether `in_blocks` can predict an image of this size: all networks give equal blocks."""
        if any(member.predictor.view(height, width) for member in self.members):
            return all(member.predictor.view(height, width) for member in self.members)
        first, *others = (member.predictor.windows(height, width) for member in self.members)
        return all(other == first for other in others)

    def in_blocks(self, image: Image, device: torch.device | str,
                  on_block: Callable[[slice, slice, Logits], None], most_bytes: int = BLOCK_BYTES):
        """Predict an image of any size, one block after the other; see Predictor.in_blocks.

        The networks take turns, so that each keeps the rows of windows that it works on;
        most_bytes is shared among them. Raises ConfigError unless they cut the image alike.
        """
        if not self.cuts_alike(*image.shape[:2]):
            raise ConfigError("the networks of the ensemble cut the image into different windows",
                              "predict.crop_size", "give --crop-size and --overlap")
        share = most_bytes // (len(self.members) * self.parts)
        with torch.inference_mode(), ExitStack() as files:
            of_each = [files.enter_context(closing(member.predictor.blocks(image, device, share)))
                       for member in self.members]
            for blocks in zip(*of_each, strict=True):
                total, (rows, columns, _) = None, blocks[0]
                for number, block in enumerate(blocks):
                    assert block[:2] == (rows, columns), "networks that cut alike give equal blocks"
                    total = self._added(total, number, block[2])
                assert total is not None
                on_block(rows, columns, self._as_logits(total))
                del blocks, block, total        # before the next blocks are made
        first, *others = (member.predictor.finite for member in self.members)
        self.finite = first
        for finite in others:
            self.finite = self.finite & finite

    def describe(self) -> dict[str, Any]:
        """The settings that all networks share, see Predictor.describe."""
        return _shared(self._settings())

    def describe_networks(self, raw: bool | None = None) -> list[dict[str, Any]]:
        """One entry for each network: path and so on, and the settings that not all share.

        raw: True leaves out the settings of the posterior; None does if nothing decides on it.
        """
        settings = self._settings()
        if not (all(self._wanted) if raw is None else raw):
            settings = [{**one, **posterior.describe()}
                        for one, posterior in zip(settings, self.posteriors, strict=True)]
        shared = _shared(settings)
        return [{**member.about, **{key: value for key, value in one.items() if key not in shared}}
                for one, member in zip(settings, self.members, strict=True)]

    def part(self, logits: Logits, raw: bool) -> Logits:
        """The logits (N, C, ...) of one mean in what the ensemble returned."""
        parts = self._parts
        place, classes = parts.index(raw if raw in parts else False), logits.shape[1] // len(parts)
        return logits[:, place * classes:(place + 1) * classes]

    def _settings(self):
        return [member.predictor.describe() for member in self.members]

    def _added(self, total: torch.Tensor | None, number: int, logits: Logits) -> torch.Tensor:
        """The sum of probabilities (N, parts * C, H, W) with those of a network added, in place.

        Of a sigmoid (N, parts * 2 C, H, W): in each part also those that a class is not there,
        because float32 cannot tell probabilities just below 1 apart.
        """
        assert self._wanted, "posterior() is called before the first image"
        if total is None:
            n, classes, *size = logits.shape
            classes *= self.parts * (2 if self.activation == "sigmoid" else 1)
            total = torch.zeros(n, classes, *size, device=logits.device)
        for raw in self._parts:
            place = self.part(total, raw)
            if self.activation == "softmax":
                own = self.members[number].activation
                place.add_(probabilities(logits, own) if raw else self.posteriors[number](logits))
                continue
            own = logits if raw else self.posteriors[number].logits(logits)
            for half, signed in zip(place.chunk(2, 1), (own, -own), strict=True):
                half.add_(probabilities(signed, "sigmoid"))
        return total

    def _as_logits(self, total: torch.Tensor) -> Logits:
        """Turn a sum of probabilities into logits of their mean, in place."""
        mean = total.div_(len(self.members))
        logs = mean.clamp_(min=torch.finfo(mean.dtype).tiny).log_()
        if self.activation == "softmax":
            return logs
        there, absent = logs.unflatten(1, (self.parts, 2, -1)).unbind(2)
        return there.sub_(absent).flatten(1, 2)


class MeanPosterior(Posterior):
    """The posterior of an Ensemble: its logits -> the mean probabilities (N, C, ...).

    raw: the mean of the networks' own probabilities.
    """

    def __init__(self, ensemble: Ensemble, raw: bool):
        super().__init__(ensemble.activation)
        self.ensemble, self.raw = ensemble, raw

    def __call__(self, logits: Logits) -> torch.Tensor:
        return probabilities(self.logits(logits), self.activation)

    def logits(self, logits: Logits) -> Logits:
        """Logits whose softmax, or sigmoid, are the mean probabilities."""
        return self.ensemble.part(logits, self.raw)

    @property
    def reorders(self) -> bool:
        """Whether the most probable class is another one than that of the mean raw probability, or
        the largest of all logits may belong to the other part.
        """
        return self.raw or self.ensemble.differ

    @property
    def undone(self) -> str:
        """What was undone of the losses, and of how many networks, if not of all alike."""
        if self.raw:
            return ""
        posteriors = self.ensemble.posteriors
        texts = collections.Counter(posterior.undone for posterior in posteriors)
        if len(texts) == 1:
            return next(iter(texts))
        return ", ".join(f"{text or 'nothing undone'} in {count} of {len(posteriors)} networks"
                         for text, count in texts.items())

    @property
    def text(self) -> str:
        """What was done to the logits, in words."""
        if self.raw:
            kinds = dict.fromkeys(KINDS[one.activation] for one in self.ensemble.members)
            return f"mean of the {' / '.join(kinds)}"
        texts = dict.fromkeys(posterior.text for posterior in self.ensemble.posteriors)
        return f"mean of the probabilities ({' / '.join(texts)})"

    def describe(self) -> dict[str, Any]:
        """The settings that all networks share, and "posterior", if anything was undone."""
        if self.raw:
            return {}
        shared = _shared([posterior.describe() for posterior in self.ensemble.posteriors])
        return {**shared, **({"posterior": self.undone} if self.undone else {})}


def build_ensemble(networks: Sequence[OpenModel], options: Sequence[dict[str, Any]],
                   predictors: Sequence[Predictor]) -> Ensemble:
    """The ensemble of networks that are alike (utils.predict.open_networks).

    options: the `predict` section of each, with the arguments of the command line. predictors: of
    each. Raises ConfigError for networks that predict no classes.
    """
    for network in networks:
        if getattr(network.model, "decision", None):
            raise ConfigError(f"{type(network.model).__name__} does not predict classes, so there "
                              "are no probabilities to average", shown(network.path),
                              "give this network alone")
    members = [Member(predictor, functools.partial(build_posterior, own, network.activation,
                                                   _inverse_of(network)),
                      {"path": str(network.path), "sha256": network.sha256,
                       "epoch": network.epoch}, network.activation)
               for network, own, predictor in zip(networks, options, predictors, strict=True)]
    first = networks[0]
    return Ensemble(members, first.device, of_logits(first.activation),
                    lambda: _any_inverse(networks))


def unused_settings(networks: Sequence[OpenModel], options: Sequence[Mapping[str, Any]],
                    rules: str | None = None) -> list[str]:
    """A line for each network whose settings of the decision are not those of the first.

    rules: those that decide, such as "max,T" or "all", if the command line says which.
    """
    lines, keys = [], (*OF_THE_MEAN[bool(rules):], "ignore_index")
    first, *others = ({**own, "ignore_index": network.config["ignore_index"]}
                      for network, own in zip(networks, options, strict=True))
    # Rule max takes one kind of probabilities of all networks.
    of_max = "max" in map(str.strip, (rules or first["test"]).split(","))
    for network, own in zip(networks[1:], others, strict=True):
        apart = [key for key in keys if own.get(key) != first.get(key)]
        if of_max and takes_raw("max", own) != takes_raw("max", first):
            apart.append("posterior")
        if apart:
            texts = ", ".join(f"{key} {own.get(key)} (there {first.get(key)})" for key in apart)
            lines.append(f"the ensemble decides and is scored as {shown(networks[0].path)} says; "
                         f"{shown(network.path)} has the settings {texts}")
    return lines


def _inverse_of(network: OpenModel) -> InverseSource:
    """The inverse of a network's loss; the reason why there is none names the network."""
    def found():
        inverse = network.inverse()
        if isinstance(inverse, NoInverse):
            return NoInverse(f"{inverse.reason} ({shown(network.path)})")
        return inverse
    return found


def _any_inverse(networks: Sequence[OpenModel]) -> Inverse | NoInverse:
    """An inverse that changes something, if any network has one."""
    found = [network.inverse() for network in networks]
    return next((one for one in found if isinstance(one, Inverse) and one.active), found[0])


def _require_one_size(members: Sequence[Member]):
    """Raise ConfigError unless all networks are scored at one size of the labels."""
    scored = []
    for member in members:
        seen_at = member.predictor.seen_at
        scored.append(seen_at.describe() if seen_at and seen_at.score_at == "input" else None)
    other = next((i for i, one in enumerate(scored) if one != scored[0]), None)
    if other is not None:
        raise ConfigError("the networks of an ensemble are scored at different sizes: "
                          f"{scored[0] or 'that of the label'} and "
                          f"{scored[other] or 'that of the label'}", "predict.score_at",
                          "give one --protocol or one --input-size for all")


def _shared(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all have, with equal values."""
    first, *others = settings
    return {key: value for key, value in first.items()
            if all(key in other and other[key] == value for other in others)}
