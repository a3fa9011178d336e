"""Weights & Biases (wandb.ai, or a server of one's own), through the package wandb."""
import inspect
import os
import uuid
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, first_line
from utils.images.types import Image
from utils.training.trackers.tracker import PROJECT, Outcome, Session, Tracker

STEP = "step"               # the x axis of all charts
# Seconds in which wandb may start a run, and upload what is left at its end. Both are less than a
# short training with the wait of utils.training.trackers.channel.
FIRST_SECONDS, LAST_SECONDS = 40, 50
_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
# The statuses that W&B shows as finished, killed (that of Ctrl-C there) and failed.
_STATUS = {"finished": 0, "interrupted": 255, "failed": 1}


class WandB(Tracker):
    """A run of Weights & Biases; WANDB_MODE=offline keeps it in the run's folder.

    project, entity, group, tags: of the run; null: those of wandb's environment variables, or
        the project "segwright". pictures: also upload example pictures.

    If the server cannot be reached at the start, the run is kept offline. A resumed training goes
    on in the same run of W&B, unless that was deleted there.
    """

    aliases = ("wandb",)
    package = "wandb"
    waits = True

    def __init__(self, project: str | None = None, entity: str | None = None,
                 group: str | None = None, tags: list[str] | None = None, pictures: bool = True):
        self.project = project or os.environ.get("WANDB_PROJECT") or PROJECT
        self.entity, self.group, self.tags, self.draws = entity, group, tags, pictures

    def require(self):
        """Raise ConfigError if wandb is not installed, or not logged in and not offline."""
        super().require()
        wandb = self.module
        mode = wandb.setup().settings.mode
        if mode not in ("online", "shared") or any(map(os.environ.get, _KEYS)):
            return
        # Without an answer to give, wandb would ask for a key in the middle of the training.
        asks = "prompt" not in inspect.signature(wandb.login).parameters
        try:
            known = wandb.api.api_key if asks else wandb.login(prompt=False)
        except wandb.errors.Error:      # the server cannot be reached: `start` copes with that
            return
        if not known:
            raise ConfigError("trainer.log_to names wandb, which has no key for its server",
                              "trainer.log_to", "run wandb login, set WANDB_API_KEY, or set "
                              "WANDB_MODE=offline and upload later with wandb sync")

    def start(self, session: Session) -> dict[str, int] | None:
        """Make the run, or go on with that of the record. Raises errors of wandb.

        Returns the last step that the server, or the files of an offline run, have.
        """
        wandb = self.module
        identity = session.record.get("id") or uuid.uuid4().hex[:8]
        session.keep({"id": identity})      # before the run exists: a kill must not lose it
        settings: dict[str, Any] = {"console": "off", "quiet": True,
                                    "init_timeout": FIRST_SECONDS}
        if "finish_timeout" in getattr(wandb.Settings, "model_fields", {}):
            settings["finish_timeout"] = LAST_SECONDS
        options = dict(project=self.project, entity=self.entity, group=self.group, tags=self.tags,
                       id=identity, resume="allow", name=session.name, dir=str(session.folder),
                       config={**session.config, "run_folder": str(session.folder)},
                       allow_val_change=True, settings=wandb.Settings(**settings))
        try:
            self.run = wandb.init(**options)
        except wandb.errors.CommError as error:
            wandb.teardown()            # which still holds the identity
            if "deleted" in str(error):         # W&B gives no identity twice
                session.say(f"wandb: the run {identity} was deleted on the server; a new one "
                            f"begins, with the steps to {session.step} from metrics.jsonl")
                return self.start(replace(session, record={}))
            session.say(f"wandb cannot be reached: {first_line(error)}")
            self.run = wandb.init(**options, mode="offline")
        # Not wandb's own step: a resumed run could not log at the step where it stopped.
        self.run.define_metric(STEP)
        self.run.define_metric("*", step_metric=STEP)
        if self.run.offline:
            session.say("wandb: the run is kept offline; to upload it:\n  wandb sync "
                        f"{os.path.dirname(self.run.dir)}")
            last = _last_step(session.folder.glob(f"wandb/*run-*-{identity}/run-{identity}.wandb"))
            return {"train": last, "val": last}
        if not self.run.disabled:
            session.say(f"wandb: {self.run.url}")
        if self.run.disabled:
            return None
        last = self.run.summary.get(STEP)       # none: the run got nothing before it was killed
        return {"train": int(last), "val": int(last)} if isinstance(last, (int, float)) else {}

    def log(self, values: dict[str, float], step: int, epoch: int | None):
        """Add a row of the run's history."""
        self.run.log({**values, STEP: step, **({} if epoch is None else {"epoch": epoch})})

    def image(self, tag: str, image: Image, step: int):
        """Upload a picture."""
        self.run.log({tag: self.module.Image(image), STEP: step})

    def best(self, values: dict[str, float], step: int):
        """Set values of the run's summary."""
        self.run.summary.update(values)

    def close(self, outcome: Outcome, text: str):
        """Upload what is left, and mark the run as finished, killed or failed."""
        self.run.summary["ended"] = text
        self.run.finish(exit_code=_STATUS[outcome])


def _last_step(files: Iterable[Path]) -> int:
    """The last STEP in the files of an offline run, -1 if there is none.

    wandb writes them in blocks of 32 KB, so that a kill can lose the last lines. A value follows
    its name in a record as the tag of field 16, a length and JSON text (wandb's protocol buffers).
    """
    name = b"\4" + STEP.encode() + b"\x82\1"
    steps = [-1]
    for file in files:
        for part in file.read_bytes().split(name)[1:]:
            digits = part[1:1 + part[0]] if part else b""
            steps += [int(digits)] if digits.isdigit() else []
    return max(steps)
