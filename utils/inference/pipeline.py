"""The stages that turn images into labels: network, predictor, decision rule, refinement."""
import argparse
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from utils.cli.console import notice
from utils.decision.confidence import confidence, entropy, gray_form
from utils.decision.ensemble import Ensemble, build_ensemble, unused_settings
from utils.decision.posterior import Posterior, build_posterior, of_logits
from utils.decision.rules import Decision, build_decision, require_not_idle, rule_of
from utils.decision.stored_scores import COARSE, stored_form
from utils.errors import ConfigError, DataError, NumericalError, UserError, shown
from utils.images.image_list import Source
from utils.images.types import Image, Labels
from utils.inference.prediction_files import (
    CONFIDENCE,
    ENTROPY,
    MASKS,
    OF_PROBABILITIES,
    PROBABILITIES,
)
from utils.machine import distributed
from utils.machine.tensors import Logits
from utils.predict.arguments import require_rule_arguments, tell_base_size
from utils.predict.open_model import OpenModel
from utils.predict.open_networks import each_with_arguments, open_networks, read_networks
from utils.predict.predictor import Predictor, not_finite, zeroed
from utils.segfix.refiner import Refiner, open_refiner

Job: TypeAlias = tuple[Source, dict[str, str]]      # an input and its output files: suffix -> path


class Prediction(NamedTuple):
    """labels: class ids (H, W). maps: suffix -> array of the other outputs that are wanted, as
    utils.inference.prediction_files.write_prediction takes them.
    """

    labels: Labels
    maps: dict[str, np.ndarray]


@dataclass(frozen=True)
class Pipeline:
    """The stages of one run of inference.py.

    opened: the network with its class names, palette and config; of an ensemble the first one.
    predictor: images (N, 3, H, W) -> logits (N, C, H, W), or what an Ensemble returns.
    decision: logits -> labels (N, H, W) or masks (N, C, H, W).
    refiner: labels -> labels with better borders (SegFix), or None.
    posterior: logits -> the probabilities that are written; None: none are.
    stored: the form in which they are written (utils.decision.stored_scores.KINDS).
    legend: whether overlays and films have a legend below the picture.
    """

    opened: OpenModel
    predictor: Predictor | Ensemble
    decision: Decision
    refiner: Refiner | None = None
    posterior: Posterior | None = None
    stored: str = "float16"
    legend: bool = True

    def predict(self, images: list[Image], names: list[str], wanted: Collection[str]) \
            -> list[Prediction | UserError]:
        """The prediction for each image of one size, uint8 (H, W, 3), or why there is none.

        names: of the images, for messages and to find their offset files. wanted: suffixes of the
        output files: OF_PROBABILITIES and MASKS are made only if they are among these.
        """
        of_probabilities, with_masks = set(OF_PROBABILITIES) & set(wanted), self.decision.masks
        stack = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        x = stack.to(self.predictor.takes(self.opened.device))
        maps: dict[str, np.ndarray] = {}        # suffix -> (N, ...)
        with torch.inference_mode():
            if self.decision.largest_logit and not of_probabilities:
                labels = self.predictor.labels(x, self.decision)
                finite = self.predictor.finite.tolist()
            else:
                logits, finite = self._finite_logits(x)
                masks = self.decision(logits) if MASKS in wanted and with_masks else None
                labels = self.decision.label_map(logits, masks)
                if masks is not None:
                    maps[MASKS] = masks.cpu().numpy()
                if of_probabilities:
                    maps |= self.maps(logits, wanted)
            results = []
            for i, name in enumerate(names):
                if not finite[i]:
                    results.append(not_finite(shown(name)))
                    continue
                try:
                    one = self._refined(labels[i], x[i], name)
                except (DataError, NumericalError) as error:
                    results.append(error)
                    continue
                own = {suffix: array[i] for suffix, array in maps.items()}
                if MASKS in wanted and not with_masks:
                    own[MASKS] = one == np.arange(len(self.opened.class_names))[:, None, None]
                results.append(Prediction(one, own))
        return results

    def maps(self, logits: Logits, wanted: Collection[str]) -> dict[str, np.ndarray]:
        """The outputs among `wanted` that are made of probabilities: suffix -> array (N, ...)."""
        if not set(OF_PROBABILITIES) & set(wanted):
            return {}
        assert self.posterior is not None, "open_pipeline makes it for these outputs"
        probs, maps = self.posterior(logits), {}
        if CONFIDENCE in wanted:
            maps[CONFIDENCE] = gray_form(confidence(probs))
        if ENTROPY in wanted:
            maps[ENTROPY] = gray_form(entropy(probs, self.opened.activation))
        if PROBABILITIES in wanted:     # the last one, because it may change them
            maps[PROBABILITIES] = stored_form(probs, self.stored)
        return maps

    @property
    def stored_as(self) -> tuple[str, str]:
        """The activation of written probabilities, and what was undone of the loss, or ""."""
        kind = of_logits(self.opened.activation)    # those of scores sum to 1 too
        return kind, self.posterior.undone if self.posterior else ""

    def _finite_logits(self, x):
        """Logits (N, C, H, W), and for each image whether they are finite; zeros if they are not.
        """
        logits = self.predictor(x)
        finite = self.predictor.finite.tolist()
        return logits if all(finite) else zeroed(logits, self.predictor.finite), finite

    def _refined(self, labels, image, name):
        """Labels (H, W) as an array, refined if there is a refiner."""
        if self.refiner:
            labels = self.refiner(labels, image, name)
        return labels.cpu().numpy()

    def describe(self) -> dict:
        """How images are predicted, for reports."""
        return {**self._weights(), "procedure": self.decision.name,
                **(self.posterior.describe() if self.posterior else {}),
                **({} if self.decision.void is None else {"unassigned": "void"}),
                **self.decision.describe(), **self.predictor.describe()}

    def _weights(self):
        """The path of the checkpoint, or the networks of an ensemble."""
        if not isinstance(self.predictor, Ensemble):
            return {"checkpoint": str(self.opened.path)}
        return {"ensemble": self.predictor.describe_networks()}


def open_pipeline(args: argparse.Namespace) -> Pipeline:
    """Returns the stages that the arguments of inference.py describe, on their device.

    Raises CheckpointError, ConfigError or DataError for arguments that do not fit.
    """
    stored = read_networks(args.checkpoint, args.config)
    device = distributed.start(args.device)
    networks = open_networks(stored, device)
    each, opened = each_with_arguments(stored, args), networks[0]
    options = each[0]
    rule = rule_of(opened.model, args.predict or options["test"])
    if args.predict not in (None, rule):
        raise ConfigError(f"{type(opened.model).__name__} does not predict classes, so the rule "
                          f"{args.predict} cannot decide on them", "--predict",
                          "leave the rule out")
    if args.segfix:
        opened.require_rgb("--segfix is", "--segfix")
    seen = [network.predictor(own) for network, own in zip(networks, each, strict=True)]
    predictors = [predictor.for_files() for predictor in seen]
    ensemble = build_ensemble(networks, each, predictors) if len(networks) > 1 else None
    wanted = bool(args.probabilities or args.confidence or args.entropy)
    inverse = (ensemble or opened).inverse
    require_rule_arguments(args, [rule], options, wanted, inverse,
                           networks=each if ensemble else ())
    decision = build_decision(rule, opened.activation, options, inverse,
                              opened.config["ignore_index"], ensemble)
    require_not_idle(decision)
    if args.ids == "label" and decision.void is not None:
        raise ConfigError('unassigned "void" leaves pixels without a class, which test servers '
                          "count as wrong", "--ids label", "add --unassigned assign")
    posterior = build_posterior(options, opened.activation, inverse, ensemble) if wanted else None
    if args.probabilities == "uint8":
        notice(f"--probabilities {COARSE}")
    for line in unused_settings(networks, each, args.predict):
        notice(line)
    refiner = open_refiner(args.segfix, args.segfix_scale, device) if args.segfix else None
    _tell_sizes(networks, each, seen)
    if refiner and args.masks and decision.masks:
        notice(f"--segfix refines the label maps; the masks of rule {rule} stay as they are")
    return Pipeline(opened, ensemble or predictors[0], decision, refiner, posterior,
                    args.probabilities or "float16", not args.no_legend)


def _tell_sizes(networks: list[OpenModel], each: list[dict], seen: list[Predictor]):
    """Say at which size the networks see images, where nobody asked for one."""
    for network, options, predictor in zip(networks, each, seen, strict=True):
        tell_base_size(predictor.base_size, options,
                       f" by {shown(network.path)}" * (len(networks) > 1))
    if any(predictor.for_files() is not predictor for predictor in seen):
        notice("the settings score images at the size of the network's input; files show the whole "
               "image at its own size")
