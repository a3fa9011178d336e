"""Scores one checkpoint under one protocol or several, and says what each of them is worth."""
import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from utils.cli.console import notice
from utils.decision.posterior import Posterior, build_posterior, posterior_text
from utils.errors import ConfigError
from utils.evaluation.evaluate import build_rules, evaluate
from utils.evaluation.page_of_test import PageOfTest
from utils.evaluation.regret import Regret
from utils.evaluation.score_report import Scored, deliver, score_entries
from utils.files.json_values import plain_json
from utils.machine.distributed import is_main
from utils.metrics.confidence import Difference, compare, intervals
from utils.metrics.image_scores import ImageScores, image_scores
from utils.metrics.risk_coverage import RiskCoverage
from utils.metrics.table import aligned, bounds_text, p_text, percent, signed_percent
from utils.predict.arguments import require_rule_arguments
from utils.predict.open_model import OpenModel
from utils.predict.predictor import build_predictor
from utils.predict.protocols import names_for, settings_of
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
    """The scores of one checkpoint on one loader, protocol after protocol.

    digest: sha256 of the checkpoint. key, section: the loader of the config. read: the size at
    which it reads images and labels; None: their own. own_size: the predictor resizes images.
    page: takes what report.html shows.
    """

    opened: OpenModel
    digest: str
    loader: Any
    key: str
    section: dict
    read: int | list[int] | None
    refiner: Refiner | None
    own_size: bool
    page: PageOfTest | None = None
    runs: list[Run] = field(default_factory=list)

    def add(self, name: str | None, options: dict, args: argparse.Namespace, folder: str):
        """Score with `options`, a `predict` section; add the result to the files and print it.

        name: the protocol, None for the config's own settings. args: of test.py. Settings that were
        scored before are left out, with a notice.
        """
        opened, loader = self.opened, self.loader
        predictor = (opened.predictor(options, self.section) if self.own_size else build_predictor(
            opened.model, opened.normalize, options, opened.activation))
        rules = build_rules(args.predict or options["test"], opened.activation, options,
                            opened.model, opened.inverse)
        probabilities = args.risk_coverage or args.regret \
            or args.report and rules[0].name != "offsets"
        require_rule_arguments(args, [rule.name for rule in rules], options, probabilities,
                               opened.inverse, dependent=args.regret)
        options = {**options, "boundary": options["boundary"] or self.refiner is not None}
        settings = {**predictor.describe(), "published": options["published"],
                    "CoI": options["CoI"]}
        if not self._is_new(settings, name or OWN):
            return
        counted = self._confidence(options, rules, args)
        regret = self._regret(options, rules) if args.regret else None
        kept = self.page.keep(options, opened.config["ignore_index"]) if self.page else None
        start = time.perf_counter()
        results = evaluate(
            predictor, loader, rules, num_classes=len(opened.class_names),
            ignore_index=opened.config["ignore_index"], classes_of_interest=options["CoI"],
            published=options["published"], boundary=options["boundary"], loss=opened.loss(),
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
            scored = Scored(opened, self.digest, predictor, rules, self.key, self.section, names,
                            options, self.refiner, self.read)
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

    def _confidence(self, options, rules, args):
        """What counts errors by confidence: of the posterior, and of the raw logits before it."""
        if args.risk_coverage:
            self._require_classes(rules, "--risk-coverage")
        elif not self.page or rules[0].name == "offsets":
            return {}
        posterior, raw = self._posterior(options), Posterior(self.opened.activation)
        chosen = {posterior_text(posterior): posterior}
        if self.page and posterior.describe() != raw.describe():
            chosen = {posterior_text(raw): raw, **chosen}
        return {title: RiskCoverage(one, len(self.opened.class_names),
                                    self.opened.config["ignore_index"])
                for title, one in chosen.items()}

    def _regret(self, options, rules):
        self._require_classes(rules, "--regret")
        if options["published"]:
            raise ConfigError("predict.published scores ignored pixels as background, and regret "
                              "is split on labeled pixels only", "--regret",
                              "leave it out, or set predict.published=false")
        return Regret(self._posterior(options), len(self.opened.class_names),
                      self.opened.config["ignore_index"], options["CoI"], options["pruning"],
                      options["theta"], options["amplitude"])

    def _posterior(self, options):
        return build_posterior(options, self.opened.activation, self.opened.inverse)

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
