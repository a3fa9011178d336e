"""Scores a checkpoint or an ensemble under protocols, and says what each of them is worth."""
import argparse
import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from utils.cli.console import notice
from utils.config.loader_section import loader_section
from utils.decision.ensemble import Ensemble, build_ensemble, unused_settings
from utils.decision.posterior import Posterior, build_posterior
from utils.errors import ConfigError, shown
from utils.evaluation.evaluate import build_rules, evaluate
from utils.evaluation.page_of_test import PageOfTest
from utils.evaluation.regret import Regret
from utils.evaluation.results_file import protocol_of
from utils.evaluation.score_report import Scored, deliver, score_entries
from utils.files.json_values import plain_json
from utils.images.base_size import base_size_text
from utils.machine.distributed import is_main
from utils.metrics.confidence import Difference, compare, intervals
from utils.metrics.image_scores import ImageScores, image_scores
from utils.metrics.risk_coverage import RiskCoverage
from utils.metrics.table import aligned, bounds_text, p_text, percent, signed_percent
from utils.predict.arguments import require_rule_arguments
from utils.predict.open_model import OpenModel
from utils.predict.predictor import Predictor, build_predictor
from utils.predict.protocols import changes, names_for, settings_of
from utils.segfix.refiner import Refiner

OWN = "own settings"        # of the checkpoint's config, in the table
# The scores of the tables: of the dataset level, and of the image level, which every run has.
TITLES = {"Mean_IoU": "mean IoU", "mIoU_I": "mIoU_I"}


class Run(NamedTuple):
    """One protocol, or OWN, and what one rule reached with it.

    settings: how images were predicted and scored (Predictor.describe and the scoring options).
    seconds: per image, with reading and scoring.
    """

    name: str
    rule: str
    settings: dict[str, Any]
    scores: ImageScores
    seconds: float


def protocols_to_score(text: str | None, dataset: str) -> list[str | None]:
    """The protocols that --protocol names, in order; None stands for the config's own settings.

    text: a name, several with commas, or "all": the own settings and all protocols for data of the
    type `dataset`. Raises ConfigError for an unknown name.
    """
    if text is None:
        return [None]
    if text == "all":
        return [None, *names_for(dataset)]
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        settings_of(name, "--protocol")
    return [*names]


@dataclass
class ProtocolScores:
    """The scores of one checkpoint or ensemble on one loader, protocol after protocol.

    networks: one, or those of an ensemble; data, rules and scores are as the first one says.
    key, section: the loader of its config. read: the size at which it reads images and labels;
    None: their own. own_size: the predictor resizes images. page: takes what report.html shows.
    """

    networks: list[OpenModel]
    loader: Any
    key: str
    section: dict
    read: int | list[int] | None
    refiner: Refiner | None
    own_size: bool
    page: PageOfTest | None = None
    runs: list[Run] = field(default_factory=list)
    told: set[str] = field(default_factory=set)

    @property
    def opened(self) -> OpenModel:
        """The first network."""
        return self.networks[0]

    def add(self, name: str | None, each: list[dict], args: argparse.Namespace, folder: str):
        """Score with `each`, the `predict` section of every network; write and print the result.

        name: the protocol, None for the config's own settings. args: of test.py. Settings that were
        scored before are left out, with a notice.
        """
        opened, loader, options = self.opened, self.loader, each[0]
        predictors = [self._predictor(*pair) for pair in zip(self.networks, each, strict=True)]
        ensemble = self._ensemble(each, predictors, args) if len(predictors) > 1 else None
        predictor = ensemble or predictors[0]
        inverse = (ensemble or opened).inverse
        rules = build_rules(args.predict or options["test"], opened.activation, options,
                            opened.model, inverse, ensemble)
        probabilities = args.risk_coverage or args.regret \
            or args.report and rules[0].name != "offsets"
        require_rule_arguments(args, [rule.name for rule in rules], options, probabilities,
                               inverse, dependent=args.regret, networks=each if ensemble else ())
        options = {**options, "boundary": options["boundary"] or self.refiner is not None}
        settings = {**predictor.describe(), "published": options["published"],
                    "CoI": options["CoI"]}
        if ensemble:
            settings["networks"] = ensemble.describe_networks()
        if not self._is_new(settings, name or OWN):
            return
        posterior = functools.partial(build_posterior, options, opened.activation, inverse,
                                      ensemble)
        counted = self._confidence(posterior, rules, args, ensemble)
        regret = self._regret(posterior, options, rules) if args.regret else None
        kept = self.page.keep(options, opened.config["ignore_index"]) if self.page else None
        loss = self._loss(ensemble)
        start = time.perf_counter()
        results = evaluate(
            predictor, loader, rules, num_classes=len(opened.class_names),
            ignore_index=opened.config["ignore_index"], classes_of_interest=options["CoI"],
            published=options["published"], boundary=options["boundary"], loss=loss,
            device=opened.device, progress=self.key, refiner=self.refiner,
            risk=list(counted.values()), regret=regret, kept=kept)
        seconds = time.perf_counter() - start
        names = loader.dataset.class_names
        ids = [sample.id for sample in loader.dataset.samples]
        measured = _measured(counted, args)
        parts = regret.compute(results) if regret else {}
        tables = {rule: image_scores(scores.image or {}, ids, names, options["CoI"])
                  for rule, scores in results.items()}
        entries = []
        if is_main():
            scored = Scored(opened, predictor, rules, self.key, self.section, names, options,
                            self.refiner, self.read, loader.dataset.title)
            entries = score_entries(results, scored)
            for entry in entries:
                entry.update(measured)
                if regret:
                    parts_of_rule = parts[entry["procedure"]]
                    entry["regret"] = plain_json({**regret.describe(), **parts_of_rule})
            deliver(folder, results, entries, names, ids, args.json)
        if self.page:
            self.page.add(name or OWN, entries, tables, kept)
        for rule, scores in results.items():
            self.runs.append(Run(name or OWN, rule, settings, tables[rule],
                                 seconds / max(scores.images, 1)))

    def _confidence(self, make_posterior, rules, args, ensemble):
        """What counts errors by confidence: of the posterior, and of the raw logits before it."""
        if args.risk_coverage:
            self._require_classes(rules, "--risk-coverage")
        elif not self.page or rules[0].name == "offsets":
            return {}
        posterior = make_posterior()
        chosen = {posterior.text: posterior}
        raw = Posterior(self.opened.activation)
        if self.page and (ensemble.differ if ensemble else posterior.describe() != raw.describe()):
            raw = ensemble.posterior(raw=True) if ensemble else raw
            chosen = {raw.text: raw, **chosen}
        return {title: RiskCoverage(one, len(self.opened.class_names),
                                    self.opened.config["ignore_index"])
                for title, one in chosen.items()}

    def _predictor(self, network, options) -> Predictor:
        if not self.own_size:
            return build_predictor(network.model, network.normalize, options, network.activation)
        return network.predictor(options, self._section_of(network))

    def _section_of(self, network):
        """The loader of a network's own config that has the key of the first one's; or None."""
        if network is self.opened:
            return self.section
        split = self.key.removesuffix("_loader")
        return loader_section(network.config, split)[1] if network.config.get(self.key) else None

    def _ensemble(self, each, predictors, args) -> Ensemble:
        names = [protocol_of({"protocol": one.get("protocol"), "protocol_changes": changes(one)})
                 for one in each]
        for network, own, options in zip(self.networks, names, each, strict=True):
            pair = f"{shown(self.opened.path)} and {shown(network.path)}"
            if own != names[0]:
                raise ConfigError(f"{pair} are tested under different protocols: {names[0]} / "
                                  f"{own}", "predict.protocol", "give one with --protocol")
            # With own sizes, each network sees an image as it was validated.
            size = None if self.own_size else network.chosen_size(options,
                                                                  self._section_of(network))
            if not self.own_size and size != self.read:
                raise ConfigError(f"{shown(network.path)} was validated at "
                                  f"{base_size_text(size)}, and the loader of "
                                  f"{shown(self.opened.path)} reads {base_size_text(self.read)}",
                                  "--as-validation", "leave it out")
        ensemble = build_ensemble(self.networks, each, predictors)
        for line in unused_settings(self.networks, each, args.predict):
            if line not in self.told:
                notice(line)
            self.told.add(line)
        return ensemble

    def _loss(self, ensemble):
        """The loss of validation; of an ensemble that of the mean of the raw probabilities."""
        if not ensemble:
            return self.opened.loss()
        loss = self.opened.loss(of_logits=True)
        if loss is None:
            return None
        keys = ("loss", "loss_weights", "val_loss")
        first, *others = ([one.config.get(key) for key in keys] for one in self.networks)
        if any(other != first for other in others):
            return None
        posterior = ensemble.posterior(raw=True)
        return lambda logits, labels: loss(posterior.logits(logits), labels)

    def _regret(self, make_posterior, options, rules):
        self._require_classes(rules, "--regret")
        if options["published"]:
            raise ConfigError("predict.published scores ignored pixels as background, and regret "
                              "is split on labeled pixels only", "--regret",
                              "leave it out, or set predict.published=false")
        return Regret(make_posterior(), len(self.opened.class_names),
                      self.opened.config["ignore_index"], options["CoI"], options["pruning"],
                      options["theta"], options["amplitude"])

    def _require_classes(self, rules, option):
        if rules[0].name == "offsets":
            raise ConfigError(f"{type(self.opened.model).__name__} does not predict classes, so "
                              "they have no probabilities", option, "leave it out")

    def _is_new(self, settings, name):
        same = next((run for run in self.runs if run.settings == settings), None)
        if same:
            notice(f"protocol {name} is left out: it predicts as {same.name}")
        return same is None

    def table(self, level: float = 0.95) -> str:
        """Each run's mean IoU, and its difference to the first run of its rule.

        The intervals are those of tools.compare_results: from the single images, paired for the
        difference (docs/metrics.md). Image-level scores follow if a run has no other, or cannot be
        compared by another: the published code counts no pixels, and classes may differ.
        """
        rows = []
        for run in self.runs:
            first = next(one for one in self.runs if one.rule == run.rule)
            rows.append((run, first, intervals(run.scores, level),
                         compare(first.scores, run.scores, level) if run is not first else {}))
        tables = _tables(rows, level)
        reference = self.runs[0]
        changed = [f"  {run.name}: {_text(run.settings, reference.settings)}" for run in self.runs
                   if run is not reference and run.rule == reference.rule]
        return "\n".join(["what each protocol is worth (percent; difference to the first)",
                          *tables, f"settings that differ from {reference.name}:", *changed])


def _measured(counted: Mapping[str, RiskCoverage], args: argparse.Namespace) -> dict[str, Any]:
    """What the options ask of `counted`: "calibration", "risk_coverage". All ranks call this."""
    measured: dict[str, Any] = {}
    if counted and args.report:
        measured["calibration"] = [{"of": title, **one.reliability()}
                                   for title, one in counted.items()]
    if args.risk_coverage:
        measured["risk_coverage"] = [*counted.values()][-1].compute()
    return plain_json(measured)


def _tables(rows, level):
    """The lines of a table for each score that is needed.

    rows: (run, the first run of its rule, intervals and differences to it by score).
    """
    comparable = all("Mean_IoU" in scores and (run is first or _same_classes(run, first))
                     for run, first, scores, _ in rows)
    for name, title in TITLES.items():
        shown = [row for row in rows if name in row[2]]
        if shown and not (comparable and name == "mIoU_I"):
            table = [*_table(shown, name, title, f"{100 * level:g} % interval")]
            yield from aligned(table, (0, 1, 8))
            yield ""


def _table(rows, name, title, share):
    yield "protocol", "rule", title, share, "difference", share, "p", "s/image", ""
    for run, first, scores, differences in rows:
        own = scores[name]
        row = (run.name, run.rule, percent(own.value), bounds_text(own.low, own.high))
        one, seconds = differences.get(name), f"{run.seconds:.2f}"
        if run is first:
            yield *row, "", "", "", seconds, ""
        elif one is None:
            yield *row, "-", "-", "-", seconds, _why_not(run, first)
        else:
            yield (*row, signed_percent(one.value),
                   bounds_text(one.low, one.high, signed_percent), p_text(one.p), seconds,
                   _verdict(one))


def _why_not(run, first):
    """Why there is no difference of a dataset-level score, if it is not undefined."""
    if first.scores.pixels is None:
        return f"{first.name} counts no pixels"
    return "" if _same_classes(run, first) else "averages other classes"


def _same_classes(run, first):
    return sorted(run.scores.classes_of_interest) == sorted(first.scores.classes_of_interest)


def _verdict(one: Difference):
    return "" if one.differs else ("no clear difference" if one.enough else
                                   "too few images to tell")


def _text(settings, usual):
    parts = [f"{key} {settings.get(key)}" for key in dict.fromkeys((*settings, *usual))
             if settings.get(key) != usual.get(key)]
    return ", ".join(parts) or "none"
