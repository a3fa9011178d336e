"""The stages that turn images into labels: network, predictor, decision rule, refinement."""
import argparse
from dataclasses import dataclass
from typing import TypeAlias

from utils.checkpoint.find import find_checkpoint
from utils.checkpoint.read import read_checkpoint
from utils.config.load import with_config
from utils.decision.rules import Decision, build_decision, rule_of
from utils.images.image_list import Source
from utils.machine import distributed
from utils.predict.arguments import with_arguments
from utils.predict.open_model import OpenModel, open_model
from utils.predict.predictor import Predictor
from utils.segfix.refiner import Refiner, open_refiner

Job: TypeAlias = tuple[Source, dict[str, str]]      # an input and its output files: suffix -> path


@dataclass(frozen=True)
class Pipeline:
    """The stages of one run of inference.py.

    opened: the network with its class names, palette and config.
    predictor: images (N, 3, H, W) -> logits (N, C, H, W).
    decision: logits -> labels (N, H, W) or masks (N, C, H, W).
    refiner: labels -> labels with better borders (SegFix), or None.
    """

    opened: OpenModel
    predictor: Predictor
    decision: Decision
    refiner: Refiner | None = None


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
    decision = build_decision(rule, opened.activation, options)
    refiner = open_refiner(args.segfix, args.segfix_scale, device) if args.segfix else None
    return Pipeline(opened, opened.predictor(options), decision, refiner)
