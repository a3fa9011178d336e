"""One pass over a loader: predict, decide by every rule, score.

The trainer's validation and test.py call the same function, so a score in the log and a score of
the test are the same number.
"""
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from tqdm import tqdm

from utils.cli.console import warn
from utils.decision.ensemble import Ensemble
from utils.decision.rules import (
    MAX_POSTERIOR,
    RULES,
    Decision,
    build_decision,
    is_idle,
    require_not_idle,
    rule_of,
)
from utils.errors import ConfigError, DataError, shown
from utils.evaluation.regret import Regret
from utils.evaluation.worst_and_best import WorstAndBest
from utils.losses.inverse import InverseSource
from utils.machine.distributed import all_reduce_, is_main, rank, world_size
from utils.machine.memory import logits_too_large
from utils.machine.tensors import ImageBatch, LabelBatch, Logits, Masks
from utils.metrics import BoundaryMetrics, DatasetMetrics, ImageMetrics, Scores, count_pixels
from utils.metrics.counts import PixelCounts
from utils.metrics.risk_coverage import RiskCoverage
from utils.predict.predictor import NOT_FINITE, Predictor, finite_images, not_finite, zeroed
from utils.segfix.refiner import Refiner, refined

REFINED = "_segfix"        # suffix of the name of a rule whose labels were refined
GROUP_BYTES = 1 << 30      # of the logits of images that are predicted together at their own size

Predictions = Iterable[tuple[str, LabelBatch | Masks]]      # name of the rule, what it decided


def build_rules(names: str, activation: str, options: dict, model: torch.nn.Module | None = None,
                inverse: InverseSource | None = None,
                ensemble: Ensemble | None = None) -> list[Decision]:
    """The decision rules in `names`, such as "max,T" or "all", each once.

    "all" has `max` twice if the posterior changes what it decides: on raw logits, and on the
    posterior as MAX_POSTERIOR. options: the `predict` section. model: the network; some networks
    have only one possible rule (see utils.decision.rules.rule_of), and any other one then raises
    ConfigError. inverse: of the loss of the network. ensemble: as for build_decision.
    """
    only_rule = rule_of(model, "max")
    if only_rule != "max":
        if names not in ("max", only_rule):
            raise ConfigError(f"{type(model).__name__} does not predict classes, so the rule "
                              f"{names} cannot decide on them", "predict", "leave the rule out")
        names = only_rule
    build = functools.partial(build_decision, activation=activation, inverse=inverse,
                              ensemble=ensemble)
    if names != "all":
        rules = [build(name, options=options)
                 for name in dict.fromkeys(map(str.strip, names.split(",")))]
        for rule in rules:
            require_not_idle(rule)
        return rules
    # With "auto" written out `max` would be on the posterior alone.
    of_max = [build("max", options={**options, "posterior": "raw"}),
              build(MAX_POSTERIOR, options=options)]
    return [*(rule for rule in of_max if not is_idle(rule)),
            *(build(name, options=options) for name in RULES[1:])]


def evaluate(predictor: Predictor | Ensemble | Callable[[ImageBatch], Logits], loader: Any,
             decisions: list[Decision], *, num_classes: int, ignore_index: int,
             classes_of_interest: list[int] | str | None = None,
             loss: Callable[[Logits, LabelBatch], torch.Tensor] | None = None,
             device: torch.device | str, progress: str | None = None, published: bool = False,
             boundary: bool = False, refiner: Refiner | None = None,
             nonfinite: Literal["error", "warn"] = "error",
             risk: Sequence[RiskCoverage] = (), regret: Regret | None = None,
             kept: WorstAndBest | None = None) -> dict[str, Scores]:
    """Score every decision rule over the whole loader: rule name -> Scores.

    Each image takes one forward. Every number is the same for any number of ranks, to the last bit.

    predictor: uint8 (N, 3, H, W) on `device` -> logits (N, C, H, W), or what an Ensemble returns.
    loader: batches {"image", "label", "id"}; lists of tensors if image sizes differ.
        In a process group rank r gets batches r, r + world, ... of the order
        that a single process would get.
    decisions: rules from utils.decision.rules, at least one; names must differ.
    loss: (logits float32, label int64) -> scalar, computed on what the predictor returns.
    progress: text before a bar on stderr; the bar is only shown in a terminal.
    published: image-level scores as the RankDice code computes them (see ImageMetrics).
    boundary: also boundary IoU and boundary F; every prediction is then copied to the CPU.
    refiner: every rule is scored twice: as it is, and refined, under RULE_segfix.
    nonfinite: what to do about an image whose logits are not finite: raise a NumericalError with
        its id, or warn once and count its logits as zeros. (On a GPU this is found at the end.)

    risk: each also counts every image (utils.metrics.risk_coverage). regret: also judges every
        decision (utils.evaluation.regret). kept: keeps pictures of some images
        (utils.evaluation.worst_and_best).

    If the predictor resizes images, images and labels of the loader have their own sizes, and so
    have the scored logits, unless it says otherwise (Predictor.as_scored). Nothing is read from the
    device before the last batch, except for boundary scores, refined labels, regret and kept
    pictures. In `Scores.image`, img_index is the position in the loader's order.
    """
    device = torch.device(device)
    counters = {name: RuleCounter(num_classes, ignore_index, classes_of_interest, published,
                                  boundary)
                for name in _names(decisions, refiner)}
    decide, most_bytes = _shortcuts(predictor, decisions, loss, refiner, regret, *risk)
    scored = (predictor.as_scored if isinstance(predictor, Predictor | Ensemble)
              else lambda labels: labels)
    parts = predictor.parts if isinstance(predictor, Ensemble) else 1
    losses, sizes, finite = [], [], _FiniteWatch(nonfinite)
    with torch.inference_mode():
        for batch, positions in _numbered(loader, progress):
            loss_sum = torch.zeros((), device=device)
            for members, images, labels in _groups_of_equal_size(batch, device, num_classes,
                                                                 most_bytes, parts):
                ids = [batch["id"][i] for i in members]
                labels = scored(labels)
                if decide:
                    predictions = [(decisions[0].name, decide(images, decisions[0]))]
                    finite.add(ids, _finite(predictor, None))
                else:
                    # Contiguous, because a softmax over strided channels takes twice as long.
                    logits = predictor(images).contiguous()
                    logits = finite.add(ids, _finite(predictor, logits), logits)
                    predictions = _decided(decisions, logits, refiner, images, ids)
                    for one in risk:
                        one.add(logits, labels)
                    if regret is not None:
                        regret.open(logits, labels, [positions[i] for i in members])
                    if loss is not None:
                        loss_sum += loss(logits, labels.long()) * len(ids)
                for name, prediction in predictions:
                    places = [positions[i] for i in members]
                    counts = counters[name].add(prediction, labels, places)
                    if regret is not None:
                        regret.add(name, prediction)
                    if kept is not None:
                        kept.add(name, prediction, counts, images, labels, ids, places)
            losses.append(loss_sum)
            sizes.append(len(batch["id"]))
    finite.check()
    images, mean_loss = _over_ranks(sizes, losses, device)
    return {name: counter.scores(images, None if loss is None else mean_loss)
            for name, counter in counters.items()}


def _shortcuts(predictor, decisions, *needs_logits):
    """(Predictor.decide if labels are all that is needed, the most bytes of a group); or None."""
    if not isinstance(predictor, Predictor | Ensemble):
        return None, None
    # The largest logit alone does not need logits at the image's size.
    only_labels = ([one.largest_logit for one in decisions] == [True]
                   and all(one is None for one in needs_logits))
    return (predictor.decide if only_labels else None,
            GROUP_BYTES if predictor.resizes else None)


def _finite(predictor, logits):
    """Whether the logits of each image of the last call are finite, bool (N,)."""
    known = isinstance(predictor, Predictor | Ensemble)
    return predictor.finite if known else finite_images(logits)


class _FiniteWatch:
    """Finds images whose logits are not finite; reads nothing from a GPU before `check`."""

    def __init__(self, mode: Literal["error", "warn"]):
        self.mode, self.warned = mode, False
        self.pending: list[tuple[list[str], torch.Tensor]] = []

    def add(self, ids: list[str], finite: torch.Tensor, logits: Logits | None = None) -> Any:
        """Take note of finite, bool (N,), of the images `ids`. Returns their logits to count.

        On a CPU an error is raised now, and the logits of a bad image are zeros.
        """
        self.pending.append((ids, finite))
        if finite.device.type != "cpu" or bool(finite.all()):
            return logits
        self.check()
        return logits if logits is None else zeroed(logits, finite)

    def check(self):
        """Raise, or warn of, the first image of those noted whose logits are not finite."""
        bad = [name for ids, finite in self.pending
               for name, one in zip(ids, finite.tolist(), strict=True) if not one]
        self.pending = []
        if bad and self.mode == "error":
            raise not_finite(shown(bad[0]))
        if bad and not self.warned:
            self.warned = True
            warn(f"{NOT_FINITE} on {shown(bad[0])}: this score counts them as zeros")


class RuleCounter:
    """Counts the predictions of one rule, for both conventions and, on request, for outlines.

    The arguments are those of `evaluate`.
    """

    def __init__(self, num_classes: int, ignore_index: int,
                 classes_of_interest: list[int] | str | None = None, published: bool = False,
                 boundary: bool = False):
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.dataset = DatasetMetrics(num_classes, ignore_index, classes_of_interest)
        self.image = ImageMetrics(num_classes, ignore_index, classes_of_interest,
                                  published=published)
        self.boundary = (BoundaryMetrics(num_classes, ignore_index, classes_of_interest)
                         if boundary else None)

    def add(self, prediction: LabelBatch | Masks, labels: LabelBatch,
            positions: Iterable[int]) -> PixelCounts:
        """Count labels (N, H, W) or masks (N, C, H, W) against labels (N, H, W).

        positions: of the N images in the dataset. Returns the counts of the images.
        """
        counts = count_pixels(prediction, labels, self.num_classes, self.ignore_index)
        self.dataset.add(counts)
        self.image.add(counts, positions)
        if self.boundary:
            self.boundary.update(prediction, labels)
        return counts

    def scores(self, images: int, loss: float | None = None) -> Scores:
        """The Scores over all ranks; each rank must call this once."""
        self.dataset.reduce()
        self.image.reduce()
        if self.boundary:
            self.boundary.reduce()
        return Scores(self.dataset.compute(), self.image.compute(),
                      self.boundary.compute() if self.boundary else None, loss, images)


def _names(decisions, refiner):
    names = [decision.name for decision in decisions]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"decisions must be at least one and all different, got {names}")
    if refiner is None:
        return names
    return [each for name in names for each in (name, name + REFINED)]


def _numbered(loader, progress) -> Iterator[tuple[dict, range]]:
    """Each batch, and the positions of its images in the order of a single process."""
    bar = tqdm(loader, desc=progress, total=len(loader), leave=False, dynamic_ncols=True,
               disable=None if progress and is_main() else True)
    for number, batch in enumerate(bar):
        first = (rank() + number * world_size()) * loader.batch_size
        yield batch, range(first, first + len(batch["id"]))


def _decided(decisions, logits, refiner, images, ids) -> Predictions:
    """The prediction of every rule, one after the other; with a refiner also the refined one."""
    moves = []
    if refiner is not None:
        size = tuple(logits.shape[-2:])
        moves = [refiner.movement(image, name, size)
                 for image, name in zip(images, ids, strict=True)]
    for decision in decisions:
        prediction = decision(logits)
        yield decision.name, prediction
        if moves:
            yield decision.name + REFINED, torch.stack(
                [refined(*one) for one in zip(prediction, moves, strict=True)])


def _groups_of_equal_size(batch, device, classes, most_bytes, parts=1):
    """A batch as [(positions in it, images (N, 3, H, W), labels (N, H, W))], one per image size.

    The tensors are on `device`. With most_bytes the images stay on the CPU, which resizes them, and
    the logits (N, C, H, W) of a group of several images have at most so many bytes. parts: how
    many maps of them there are (Ensemble.parts).
    """
    images, labels = batch["image"], batch["label"]
    if isinstance(images, torch.Tensor):
        groups = [(range(len(images)), images, labels)]
    else:
        by_size = {}
        for index, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(index)
        groups = [(members, torch.stack([images[i] for i in members]),
                   torch.stack([labels[i] for i in members])) for members in by_size.values()]
    for members, images, labels in groups:
        if most_bytes is None:
            yield (members, images.to(device, non_blocking=True),
                   labels.to(device, non_blocking=True))
            continue
        height, width = images.shape[2:]
        reason = logits_too_large(1, classes, height, width, device, parts)
        if reason:
            raise DataError(reason, None, "score at the size of validation: --as-validation")
        step = max(1, most_bytes // (4 * parts * classes * height * width))
        for first in range(0, len(members), step):
            part = slice(first, first + step)
            yield (members[part], images[part],
                   labels[part].to(device, non_blocking=True))


def _over_ranks(sizes, losses, device):
    """(number of images, mean loss over images) of all ranks.

    Floating-point sums depend on their order, so every rank puts its batches at the positions
    that they have in a single process, before anything is added.
    """
    batches = int(all_reduce_(torch.tensor(len(sizes), device=device)).item())
    if not batches:
        return 0, float("nan")
    table = torch.zeros(2, batches, dtype=torch.float64, device=device)
    if sizes:
        of_rank = slice(rank(), None, world_size())
        table[0, of_rank] = torch.tensor(sizes, dtype=torch.float64, device=device)
        table[1, of_rank] = torch.stack(losses).double()
    count, total = all_reduce_(table).cpu().sum(1).tolist()
    return int(count), total / count
