"""The stages that turn images into labels: network, predictor, decision rule, refinement."""
import argparse
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from utils.checkpoint.find import find_checkpoint
from utils.checkpoint.read import read_checkpoint
from utils.cli.console import notice
from utils.config.load import with_config
from utils.decision.confidence import confidence, entropy, gray_form
from utils.decision.posterior import Posterior, build_posterior
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
from utils.predict.arguments import require_rule_arguments, tell_base_size, with_arguments
from utils.predict.open_model import OpenModel, open_model
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

    opened: the network with its class names, palette and config.
    predictor: images (N, 3, H, W) -> logits (N, C, H, W).
    decision: logits -> labels (N, H, W) or masks (N, C, H, W).
    refiner: labels -> labels with better borders (SegFix), or None.
    posterior: logits -> the probabilities that are written; None: none are.
    stored: the form in which they are written (utils.decision.stored_scores.KINDS).
    legend: whether overlays and films have a legend below the picture.
    """

    opened: OpenModel
    predictor: Predictor
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
        undone = self.posterior.describe().get("posterior") if self.posterior else None
        return self.opened.activation, str(undone or "")

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
        return {"checkpoint": str(self.opened.path), "procedure": self.decision.name,
                **(self.posterior.describe() if self.posterior else {}),
                **({} if self.decision.void is None else {"unassigned": "void"}),
                **self.decision.describe(), **self.predictor.describe()}


def open_pipeline(args: argparse.Namespace) -> Pipeline:
    """Returns the stages that the arguments of inference.py describe, on their device.

    Raises CheckpointError, ConfigError or DataError for arguments that do not fit.
    """
    path = find_checkpoint(args.checkpoint)
    checkpoint = with_config(read_checkpoint(path), args.config)
    device = distributed.start(args.device)
    opened = open_model(checkpoint, device, path)
    options = with_arguments(opened.config["predict"], args)
    rule = rule_of(opened.model, args.predict or options["test"])
    if args.predict not in (None, rule):
        raise ConfigError(f"{type(opened.model).__name__} does not predict classes, so the rule "
                          f"{args.predict} cannot decide on them", "--predict",
                          "leave the rule out")
    wanted = bool(args.probabilities or args.confidence or args.entropy)
    require_rule_arguments(args, [rule], options, wanted, opened.inverse)
    decision = build_decision(rule, opened.activation, options, opened.inverse,
                              opened.config["ignore_index"])
    require_not_idle(decision)
    if args.ids == "label" and decision.void is not None:
        raise ConfigError('unassigned "void" leaves pixels without a class, which test servers '
                          "count as wrong", "--ids label", "add --unassigned assign")
    posterior = build_posterior(options, opened.activation, opened.inverse) \
        if wanted else None
    if args.probabilities == "uint8":
        notice(f"--probabilities {COARSE}")
    refiner = open_refiner(args.segfix, args.segfix_scale, device) if args.segfix else None
    predictor = opened.predictor(options)
    tell_base_size(predictor.base_size, options)
    whole = predictor.for_files()
    if whole is not predictor:
        predictor = whole
        notice("the settings score images at the size of the network's input; files show the whole "
               "image at its own size")
    if refiner and args.masks and decision.masks:
        notice(f"--segfix refines the label maps; the masks of rule {rule} stay as they are")
    return Pipeline(opened, predictor, decision, refiner, posterior,
                    args.probabilities or "float16", not args.no_legend)
