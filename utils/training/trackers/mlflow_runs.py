"""MLflow, with a server, a database file or a folder, through the package mlflow."""
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from utils.errors import ConfigError, first_line
from utils.images.types import Image
from utils.training.trackers.tracker import PROJECT, Outcome, Session, Tracker, flat

_T = TypeVar("_T")
_STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_LONGEST = 500              # characters of a parameter: what every version and store takes
_MOST_PARAMETERS, _MOST_METRICS = 100, 1000     # in a call, likewise
_LONGEST_NAME = 240


class MLflow(Tracker):
    """A run of MLflow.

    tracking_uri: where runs are kept, such as "http://host:5000", "sqlite:///mlflow.db" or
        "file:mlruns"; null: MLFLOW_TRACKING_URI, or MLflow's default. experiment: its name; null:
        MLFLOW_EXPERIMENT_NAME, or "segwright". pictures: also store example pictures.

    A resumed training goes on in the same run of MLflow, or, if `experiment` has changed, in a new
    run there with all steps.
    """

    aliases = ("mlflow",)
    package = "mlflow"
    waits = True

    def __init__(self, tracking_uri: str | None = None, experiment: str | None = None,
                 pictures: bool = True):
        self.uri, self.draws = tracking_uri, pictures
        self.experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        self._names = _Names()

    def require(self):
        """Raise ConfigError if mlflow is not installed, or refuses to keep runs in a folder."""
        super().require()
        mlflow = self.module
        uri = self.uri or mlflow.get_tracking_uri()
        if uri.partition(":")[0] == "file" or ":" not in uri and uri != "databricks":
            try:
                mlflow.MlflowClient(uri)
            except mlflow.MlflowException as error:
                raise ConfigError(f"mlflow does not take {uri}: {first_line(error)}",
                                  "trainer.log_to", "give tracking_uri a database file, "
                                  "\"sqlite:///mlflow.db\", or a server") from None

    def start(self, session: Session) -> dict[str, int]:
        """Make the run, or go on with that of the record. Raises errors of mlflow.

        Returns the last steps that the run has.
        """
        mlflow = self.module
        self.client = mlflow.MlflowClient(self.uri)
        self.id = session.record.get("id")
        before = session.record.get("experiment", self.experiment)
        if before != self.experiment:
            session.say(f"mlflow: the experiment was {before}, is {self.experiment}: a new run "
                        f"begins there, with the steps to {session.step} from metrics.jsonl")
            self.id = None
        if self.id is not None:
            try:
                self.client.update_run(self.id, status="RUNNING")
            except Exception as error:      # it was deleted, or the store is another one
                session.say(f"mlflow: the run {self.id} cannot be continued ({first_line(error)}); "
                            f"a new one begins, with the steps to {session.step} from "
                            "metrics.jsonl")
                self.id = None
        continued = self.id is not None
        if not continued:
            self.id = self._new_run(session)
            session.keep({"id": self.id, "experiment": self.experiment})
        self.client.log_text(self.id, json.dumps(session.config, indent=2), "config.json")
        session.say(f"mlflow: run {self.id} of the experiment {self.experiment} in "
                    f"{self.uri or mlflow.get_tracking_uri()}")
        return self._last_steps() if continued else {}

    def _last_steps(self):
        """The last step of each kind of metric, by the loss, or by the first one of the kind."""
        names = sorted(self.client.get_run(self.id).data.metrics)
        first = {name.partition("/")[0]: name for name in reversed(names)}
        return {kind: max(one.step for one in self.client.get_metric_history(
                    self.id, f"{kind}/loss" if f"{kind}/loss" in names else name))
                for kind, name in first.items() if name != kind}

    def _new_run(self, session):
        mlflow = self.module
        found = self.client.get_experiment_by_name(self.experiment)
        try:
            place = found.experiment_id if found else self.client.create_experiment(self.experiment)
        except mlflow.MlflowException:      # another run has just made it
            place = self.client.get_experiment_by_name(self.experiment).experiment_id
        made = self.client.create_run(place, run_name=session.name, tags={
            "run_folder": str(session.folder), "mlflow.source.name": "train.py"}).info.run_id
        # A parameter cannot be changed: config.json says what a resumed run uses.
        for some in _parts(flat(session.config).items(), _MOST_PARAMETERS):
            self.client.log_batch(made, params=[
                mlflow.entities.Param(self._names[key], _text(value)) for key, value in some])
        return made

    def log(self, values: dict[str, float], step: int, epoch: int | None):
        """Add values of metrics."""
        self._metrics([*values.items(), *([] if epoch is None else [("epoch", epoch)])], step)

    def image(self, tag: str, image: Image, step: int):
        """Store a picture among the run's images."""
        self.client.log_image(self.id, image, key=self._names[tag], step=step)

    def best(self, values: dict[str, float], step: int):
        """Add values of metrics; the newest one is the one that MLflow shows in tables."""
        self._metrics(values.items(), step)

    def close(self, outcome: Outcome, text: str):
        """Mark the run as finished, killed or failed."""
        self.client.set_tag(self.id, "ended", text)
        self.client.set_terminated(self.id, status=_STATUS[outcome])

    def _metrics(self, values: Iterable[tuple[str, float]], step: int):
        metric = self.module.entities.Metric
        now = int(1000 * time.time())
        for some in _parts(values, _MOST_METRICS):
            self.client.log_batch(self.id, metrics=[metric(self._names[tag], value, now, step)
                                                    for tag, value in some])


class _Names(dict[str, str]):
    """Tag -> the name that MLflow gets: it allows letters, digits and a few signs.

    Two tags that would get one name are told apart by numbers.
    """

    def __missing__(self, tag: str) -> str:
        plain = name = re.sub(r"[^/\w.\- ]", "_", tag)[:_LONGEST_NAME]
        number = 1
        while name in self.values():
            number += 1
            name = f"{plain}_{number}"
        self[tag] = name
        return name


def _parts(items: Iterable[_T], most: int) -> Iterator[list[_T]]:
    everything = list(items)
    for number in range(0, len(everything), most):
        yield everything[number:number + most]


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST - 1] + "…"
