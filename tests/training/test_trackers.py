"""Trackers: the places of trainer.log_to, TensorBoard, and what a resume, a kill and errors do."""
import csv
import json
import sys
import threading
import types

import numpy as np
import pytest

import train
from tests.programs.test_trainer import make
from utils.checkpoint.read import read_checkpoint
from utils.cli import console
from utils.cli.console import Interrupted
from utils.config.build import build
from utils.config.load import load_config
from utils.config.schema import resolve_config
from utils.errors import ConfigError
from utils.machine import distributed
from utils.training import run_log
from utils.training.run_log import RunLogger
from utils.training.trackers import channel
from utils.training.trackers.channel import Channel, close_all
from utils.training.trackers.csv_file import CSV
from utils.training.trackers.mlflow_runs import MLflow
from utils.training.trackers.tracker import Session, Tracker
from utils.training.trackers.weights_and_biases import WandB

PICTURE = np.zeros((4, 6, 3), np.uint8)


class Service(Tracker):
    """Writes down its calls; raises the error of a call in `broken`. It waits for `gate`."""

    aliases = ("service",)
    waits, draws, stored = True, True, None

    def __init__(self, broken=()):
        self.calls, self.broken, self.gate = [], broken, threading.Event()
        self.gate.set()

    def _note(self, *call):
        self.gate.wait(10)
        self.calls.append(call)
        if call[0] in self.broken:
            raise ConnectionError(f"no route for {call[0]}")

    def start(self, session):
        self.session = session
        session.keep({"id": session.record.get("id", "new")})
        self._note("start", session.record.get("id"))
        return self.stored

    def log(self, values, step, epoch):
        self._note("log", step, epoch, *values)

    def image(self, tag, image, step):
        self._note("image", tag, step)

    def best(self, values, step):
        self._note("best", values)

    def close(self, outcome, text):
        self._note("close", outcome, text)


@pytest.fixture
def services(monkeypatch):
    """Returns the list of trackers that the next RunLoggers make, one for each of log_to."""
    made = []

    def build_service(kind, section):
        made.append(Service(section.get("broken", ())))
        return made[-1]
    monkeypatch.setattr(run_log, "build", build_service)
    return made


def opened(folder, step=0, **options):
    return RunLogger(folder, tensorboard=False, first_step=step, log_to=[{"type": "Service"}],
                     **options)


def log_lines(log, steps, kind="train"):
    for step in steps:
        values = {f"{kind}/loss": 1.0 / step}
        log.scalars(values, step, 1)
        log.record("validation" if kind == "val" else kind, step, epoch=1, **values)


def killed(log, steps):
    """Log steps, and end as a kill after them does: nothing that the next session reads tells."""
    log_lines(log, steps)
    log.close("failed", "killed")


def logged(service):
    return [call[1] for call in service.calls if call[0] == "log"]


def rows(folder):
    with open(folder / "metrics.csv", newline="") as stream:
        return list(csv.DictReader(stream))


# --- csv ---

def csv_of(folder, step=0):
    tracker = CSV()
    tracker.start(Session(folder, "run", step=step))
    return tracker


def test_a_csv_row_is_a_log_line_and_later_columns_come_last(tmp_path):
    table = csv_of(tmp_path)
    table.log({"train/loss": 0.5, "train/lr": 0.1}, 1, 1)
    table.log({"val/IoU/a, \"b\"": 0.25}, 1, 1)
    table.log({"train/lr": 0.2, "train/loss": float("nan")}, 2, None)
    text = (tmp_path / "metrics.csv").read_text()
    assert text.splitlines()[0] == 'step,epoch,train/loss,train/lr,"val/IoU/a, ""b"""'
    assert [list(row.values()) for row in rows(tmp_path)] == [
        ["1", "1", "0.5", "0.1", ""], ["1", "1", "", "", "0.25"], ["2", "", "", "0.2", ""]]


def test_a_resumed_csv_keeps_its_columns_and_drops_later_rows(tmp_path, capsys):
    table = csv_of(tmp_path)
    for step in (1, 2, 3):
        table.log({"train/loss": step}, step, 1)
    table.log({"val/loss": 9}, 3, 1)
    resumed = csv_of(tmp_path, step=2)
    resumed.log({"val/loss": 8, "train/new": 7}, 3, 2)
    assert [list(row.values()) for row in rows(tmp_path)] == [
        ["1", "1", "1", "", ""], ["2", "1", "2", "", ""], ["3", "2", "", "8", "7"]]
    assert not capsys.readouterr().err


def test_a_csv_that_is_added_at_a_resume_says_where_the_steps_before_are(tmp_path):
    said = []
    CSV().start(Session(tmp_path, "run", step=5, say=said.append))
    assert said == ["csv: metrics.csv begins after step 5; metrics.jsonl has the steps before"]


@pytest.mark.parametrize("bad", ["3,1,0.25", "three,1,0.5\n", "3,1\n", "3,1,2,3\n", "\0\n"])
def test_csv_lines_that_are_no_rows_are_moved_aside_and_told(tmp_path, capsys, bad):
    csv_of(tmp_path).log({"train/loss": 0.5}, 1, 1)
    with open(tmp_path / "metrics.csv", "a") as stream:
        stream.write(bad)
    csv_of(tmp_path, step=9).log({"train/loss": 0.25}, 10, 2)
    assert [row["step"] for row in rows(tmp_path)] == ["1", "10"]
    empty = not bad.strip("\0\n")
    assert (tmp_path / "metrics.csv.unreadable").exists() != empty
    text = capsys.readouterr().err
    assert ("1 line of another form moved to metrics.csv.unreadable" in text) != empty


def test_a_foreign_csv_is_kept_aside(tmp_path):
    (tmp_path / "metrics.csv").write_text("day,rain\nMonday,3\n")
    csv_of(tmp_path).log({"train/loss": 0.5}, 1, 1)
    assert [row["step"] for row in rows(tmp_path)] == ["1"]
    assert "Monday,3" in (tmp_path / "metrics.csv.unreadable").read_text()


def test_a_killed_and_resumed_training_has_the_csv_of_an_undisturbed_one(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    options = ["trainer.log_per_iter=1", "trainer.save_period=1", 'trainer.log_to=["csv"]']
    make(tmp_path / "whole", *options).train()
    make(tmp_path / "killed", *options).train()
    # As after a kill in epoch 3: the newest checkpoint is of an earlier step than the log.
    saved = read_checkpoint(tmp_path / "killed" / "checkpoint-epoch2.pth")
    for name in ("last.pth", "model_best.pth", "checkpoint-epoch3.pth"):
        (tmp_path / "killed" / name).unlink()
    make(tmp_path / "killed", *options, checkpoint=saved).train()
    speed = ("train/images_per_s", "train/data_time_share", "train/memory_GB")
    whole, killed = ([{key: value for key, value in row.items() if key not in speed}
                      for row in rows(tmp_path / name)] for name in ("whole", "killed"))
    assert whole == killed and len(whole) == 12 + 3 + 3
    assert {"val/IoU/a", "train/loss", "train/Mean_IoU", "val/Mean_IoU"} < set(whole[0])


# --- resume, in a record that cannot forget steps ---

def test_steps_that_a_killed_training_repeats_are_logged_once(tmp_path, services, capsys):
    killed(opened(tmp_path), range(1, 11))          # saved at step 4
    killed(opened(tmp_path, 4), range(5, 8))
    third = opened(tmp_path, 4)
    log_lines(third, range(5, 13))
    third.close()
    assert [logged(one) for one in services] == [list(range(1, 11)), [], [11, 12]]
    assert [one.calls[0] for one in services] == [("start", None), ("start", "new"),
                                                  ("start", "new")]
    assert capsys.readouterr().err.count("service: what it has of the steps 5 to 10 stays") == 2
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()] == \
        list(range(1, 13))


def test_lines_that_a_kill_kept_from_the_record_are_logged_again(tmp_path, services, monkeypatch):
    killed(opened(tmp_path), range(1, 11))
    monkeypatch.setattr(Service, "stored", {"train": 8})
    second = opened(tmp_path, 4)
    log_lines(second, range(5, 13))
    second.close()
    assert logged(services[1]) == [9, 10, 11, 12]


def test_lines_before_the_checkpoint_that_a_kill_kept_from_the_record_are_filled_in(
        tmp_path, services, monkeypatch):
    log = opened(tmp_path)
    log_lines(log, range(1, 9))
    log.record("validation", 6, epoch=2, rule="max", images=4, Mean_IoU=0.5, loss=None,
               Class_IoU={"road": 0.25, "sky": None})
    log.close("failed", "killed")
    monkeypatch.setattr(Service, "stored", {"train": 3, "val": -1})
    second = opened(tmp_path, 6)
    log_lines(second, [7, 8, 9])
    second.close()
    assert logged(services[1]) == [4, 5, 6, 6, 7, 8, 9]
    assert ("log", 6, 2, "val/Mean_IoU", "val/IoU/road") in services[1].calls


def test_a_tracker_that_is_added_later_gets_the_steps_before(tmp_path, services, capsys):
    RunLogger(tmp_path, tensorboard=False).record("train", 1, **{"train/loss": 2.0, "epoch": 1})
    opened(tmp_path, 4).close()
    assert services[0].calls[1] == ("log", 1, 1, "train/loss")
    assert "service: a new record begins, with the steps to 4 from metrics.jsonl\n" in \
        capsys.readouterr().err


def test_a_validation_that_a_stop_left_out_is_logged(tmp_path, services):
    killed(opened(tmp_path), [1, 2])
    second = opened(tmp_path, 2)
    log_lines(second, [2], "val")
    second.close()
    assert logged(services[1]) == [2]


def test_a_training_that_is_taken_back_gets_a_new_record(tmp_path, services, capsys):
    killed(opened(tmp_path), range(1, 11))
    back = opened(tmp_path, 4, lineage=[[1, 4]])
    log_lines(back, [5, 6])
    back.close()
    assert logged(services[1]) == [1, 2, 3, 4, 5, 6] and services[1].calls[0] == ("start", None)
    assert "service: a new record begins, with the steps to 4 from metrics.jsonl, because the " \
        "training was taken back" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"[]", b'{"service": 5}', b"\xff", b"[" * 100_000,
                                     b'{"service": {"line": 0, "record": [], "logged": {}}}'])
def test_damaged_notes_about_records_start_a_new_record_and_say_so(tmp_path, services, capsys,
                                                                   content):
    (tmp_path / "trackers.json").write_bytes(content)
    opened(tmp_path, 4).close()
    assert services[0].calls[0] == ("start", None)
    assert "a new record begins, with the steps to 4" in capsys.readouterr().err


def test_notes_that_cannot_be_written_cost_one_warning(tmp_path, services, capsys, monkeypatch):
    killed(opened(tmp_path), [1, 2])
    before = (tmp_path / "trackers.json").read_bytes()

    def full(path):
        raise OSError(28, "No space left on device", str(path))
    monkeypatch.setattr(run_log, "WholeFile", full)
    capsys.readouterr()
    second = opened(tmp_path, 2)
    log_lines(second, [3])
    second.close()
    assert logged(services[1]) == [3] and (tmp_path / "trackers.json").read_bytes() == before
    assert "trackers.json cannot be written, the training continues" in capsys.readouterr().err


def test_notes_that_cannot_be_read_are_not_replaced(tmp_path, services, capsys):
    (tmp_path / "trackers.json").mkdir()            # any other error than a missing file
    log = opened(tmp_path)
    log_lines(log, [1])
    log.close()
    assert logged(services[0]) == [1] and (tmp_path / "trackers.json").is_dir()
    text = capsys.readouterr().err
    assert "trackers.json cannot be read" in text and "trackers.json cannot be written" in text


def test_a_missing_metrics_file_is_no_error_of_the_tracker(tmp_path, services, capsys):
    opened(tmp_path, 4).close()
    assert "can no longer be written" not in capsys.readouterr().err


def test_only_rank_0_has_trackers(tmp_path, services, monkeypatch):
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    log = opened(tmp_path)
    log_lines(log, [1])
    log.close()
    assert not services and not list(tmp_path.iterdir())


# --- errors and endings ---

def channel_to(tracker, folder):
    return Channel(tracker, Session(folder, "run"))


def test_a_service_that_does_not_start_costs_one_warning(tmp_path, capsys):
    service = Service(["start"])
    line = channel_to(service, tmp_path)
    for step in range(20):
        line.log({"train/loss": 1.0}, step)
        line.image("train/examples", PICTURE, step)
    close_all([line], "finished", "finished")
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and "service keeps no record of this session, the training " \
        "continues (metrics.jsonl has the numbers): no route for start" in text
    assert service.calls == [("start", None)] and not line.draws


def test_lines_that_a_service_refuses_cost_one_warning_and_are_counted(tmp_path, capsys):
    line = channel_to(Service(["log"]), tmp_path)
    for step in range(20):
        line.log({"train/loss": 1.0}, step)
    close_all([line], "finished", "finished")
    text = capsys.readouterr().err
    assert text.count("warning: service can no longer be written, the training continues: no ") == 1
    assert "service lacks 20 log lines; metrics.jsonl has the numbers" in text


def test_a_service_that_hangs_does_not_hold_up_the_training_or_its_end(tmp_path, capsys,
                                                                       monkeypatch):
    monkeypatch.setattr(channel, "LAST_SECONDS", {"interrupted": 0.1})
    monkeypatch.setattr(channel, "MOST_LINES", 30)
    service = Service()
    service.gate.clear()
    line = channel_to(service, tmp_path)
    for step in range(50):
        line.log({"train/loss": 1.0}, step)
    for step in range(20):
        line.image("val/examples", PICTURE, step)
    close_all([line], "interrupted", "by SIGTERM")
    text = capsys.readouterr().err
    assert "service has not taken everything in time" in text and "lacks" in text
    service.gate.set()


def test_pictures_that_wait_are_few(tmp_path, capsys):
    service = Service()
    service.gate.clear()
    line = channel_to(service, tmp_path)
    for step in range(20):
        line.image("val/examples", PICTURE, step)
    service.gate.set()
    close_all([line], "finished", "finished")
    assert sum(call[0] == "image" for call in service.calls) == channel.MOST_PICTURES
    assert "service lacks 12 pictures" in capsys.readouterr().err


def test_the_tracker_learns_how_the_training_ended(tmp_path, services):
    options = ['trainer.log_to=["csv"]', "trainer.epochs=1", "trainer.log_per_iter=2"]
    make(tmp_path, *options).train()
    stopped, failed = make(tmp_path, *options), make(tmp_path, *options)
    stopped.stop_signal.signum = 15
    with pytest.raises(Interrupted):
        stopped.train()
    failed._check = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        failed.train()
    ends = [service.calls[-1] for service in services]
    assert [end[:2] for end in ends] == [("close", "finished"), ("close", "interrupted"),
                                         ("close", "failed")]
    assert ends[1][2].startswith("interrupted by SIGTERM at epoch 1 step ")
    first = services[0].calls
    assert [call[1:4] for call in first if call[0] == "log"] == [
        (2, 1, "train/loss"), (4, 1, "train/loss"), (4, 1, "train/Mean_IoU"),
        (4, 1, "val/Mean_IoU")]
    assert [call[1] for call in first if call[0] == "image"] == ["train/examples", "val/examples",
                                                                 "val/confusion"]
    best, = (call[1] for call in first if call[0] == "best")
    assert best.keys() == {"best/Mean_IoU", "best/epoch"}


def test_a_validation_that_is_repeated_while_the_tracker_starts_is_logged_once(tmp_path, services,
                                                                               monkeypatch):
    killed(opened(tmp_path), [4])       # in the validation after step 4
    (tmp_path / "trackers.json").unlink()
    build_service = run_log.build

    def gated(kind, section):
        service = build_service(kind, section)
        service.gate.clear()
        return service
    monkeypatch.setattr(run_log, "build", gated)
    log = opened(tmp_path, 4)
    log_lines(log, [4], "val")
    services[1].gate.set()
    log.close()
    assert [call[1:] for call in services[1].calls if call[0] == "log"] == [
        (4, 1, "train/loss"), (4, 1, "val/loss")]


# --- the config ---

def resolved(value):
    return resolve_config(load_config("config.json", [f"trainer.log_to={json.dumps(value)}"]))


def test_a_tracker_is_a_name_or_a_section():
    section = {"type": "wandb", "args": {"project": "roads"}}
    config = resolved(["csv", section])
    assert config["trainer"]["log_to"][0] == {"type": "csv", "args": {}}
    assert config["trainer"]["log_to"][1]["args"]["project"] == "roads"
    assert resolve_config(config) == config
    assert isinstance(build("trackers", config["trainer"]["log_to"][1]), WandB)


@pytest.mark.parametrize("value, text", [
    (["csv", "CSV"], "names CSV twice"), (["wandbb"], "Did you mean 'WandB' or 'wandb'"),
    ("csv", "expected a list of names or of"), ([{"type": "csv", "args": {"a": 1}}], "unknown key"),
    ([{"type": "mlflow", "args": {"tracking_uri": 5}}], "expected string or null, found 5")])
def test_a_wrong_log_to_is_refused(value, text):
    with pytest.raises(ConfigError, match=text):
        resolved(value)


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_is_named_before_data_is_read(package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("dataloader.loader.make_loader", lambda *_, **__: pytest.fail("reads data"))
    assert console.run(train.main, ["-c", "config.json", "--dry-run", "-d", "cpu",
                                    f'trainer.log_to=["{package}"]']) == 2
    text = capsys.readouterr().err
    assert f"pip install {package}, or leave it out" in text and "where: trainer.log_to" in text


# --- wandb, by a small stand-in ---

@pytest.fixture
def wandb(monkeypatch):
    """A package wandb that is logged in, and whose runs write down their calls."""
    module: types.Any = types.ModuleType("wandb")
    module.runs, module.mode, module.key, module.down = [], "online", True, False

    class Run:
        def __init__(self, **options):
            self.options, self.rows, self.summary = options, [], {}
            self.offline, self.disabled = options.get("mode") == "offline", False
            self.url, self.dir, self.exit_code = "https://wandb.example/run", "folder/files", None
            if module.down and not self.offline:
                raise module.errors.CommError("timed out")
            module.runs.append(self)
            if len(module.runs) > 1:        # the server sends what it has
                self.summary = {"step": 4}

        def define_metric(self, *names, **options):
            pass

        def log(self, row):
            self.rows.append(row)

        def finish(self, exit_code):
            self.exit_code = exit_code

    module.errors = types.SimpleNamespace(CommError=type("CommError", (Exception,), {}),
                                          Error=Exception)
    module.setup = lambda: types.SimpleNamespace(settings=types.SimpleNamespace(mode=module.mode))
    module.login = lambda prompt: module.key
    module.Settings, module.Image, module.init = dict, lambda picture: picture.shape, Run
    module.Run = Run
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_goes_on_in_the_run_of_its_first_session(tmp_path, wandb):
    for step in (0, 4):
        log = RunLogger(tmp_path, False, first_step=step, log_to=[{"type": "wandb"}],
                        config={"name": "x", "trainer": {"epochs": 3}})
        log_lines(log, [step + 4])
        log.image("val/examples", PICTURE, step + 4)
        log.best({"best/Mean_IoU": 0.5}, step + 4)
        log.close("interrupted", "by SIGTERM") if step == 0 else log.close()
    first, second = wandb.runs
    assert first.options["id"] == second.options["id"] and second.options["resume"] == "allow"
    assert first.options["config"]["trainer"] == {"epochs": 3}
    assert first.options["project"] == "segwright" and first.options["dir"] == str(tmp_path)
    assert first.rows == [{"train/loss": 0.25, "step": 4, "epoch": 1},
                          {"val/examples": (4, 6, 3), "step": 4}]
    assert [row["step"] for row in second.rows] == [8, 8]
    assert (first.exit_code, second.exit_code) == (255, 0)
    assert second.summary == {"best/Mean_IoU": 0.5, "ended": "finished", "step": 4}


@pytest.mark.parametrize("summary, missing", [({}, [5, 10]), ({"step": 5.0}, [10])])
def test_a_wandb_run_is_filled_in_from_the_step_that_the_server_has(tmp_path, wandb, monkeypatch,
                                                                    summary, missing):
    killed(RunLogger(tmp_path, False, log_to=[{"type": "wandb"}]), [5, 10])
    init = wandb.init

    def resumed(**options):
        run = init(**options)
        run.summary = dict(summary)
        return run
    monkeypatch.setattr(wandb, "init", resumed)
    killed(RunLogger(tmp_path, False, first_step=5, log_to=[{"type": "wandb"}]), [10, 15])
    assert [row["step"] for row in wandb.runs[1].rows] == [*missing, 15]


def test_a_wandb_run_that_was_deleted_is_replaced_and_told(tmp_path, wandb, monkeypatch, capsys):
    killed(RunLogger(tmp_path, False, log_to=[{"type": "wandb"}]), [5, 10])
    dead, init = wandb.runs[0].options["id"], wandb.init

    def resumed(**options):
        if options["id"] == dead:
            raise wandb.errors.CommError(f"run {dead} was previously created and deleted")
        run = init(**options)
        run.summary = {}
        return run
    monkeypatch.setattr(wandb, "init", resumed)
    monkeypatch.setattr(wandb, "teardown", lambda: None, raising=False)
    killed(RunLogger(tmp_path, False, first_step=5, log_to=[{"type": "wandb"}]), [10, 15])
    assert [row["step"] for row in wandb.runs[1].rows] == [5, 10, 15]
    new = json.loads((tmp_path / "trackers.json").read_text())["wandb"]["record"]["id"]
    assert new == wandb.runs[1].options["id"] != dead and not wandb.runs[1].offline
    assert f"wandb: the run {dead} was deleted on the server; a new one begins, with the steps " \
        "to 5 from metrics.jsonl" in capsys.readouterr().err


def test_wandb_without_a_key_is_refused_unless_it_is_offline(wandb, monkeypatch):
    wandb.key = False
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="no key for its server"):
        WandB().require()
    wandb.mode = "offline"
    WandB().require()


def test_wandb_that_cannot_be_reached_keeps_its_run_offline(tmp_path, wandb, capsys):
    wandb.down = True
    wandb.teardown = lambda: None
    log = RunLogger(tmp_path, False, log_to=[{"type": "wandb"}], config={})
    log_lines(log, [1])
    log.close()
    assert wandb.runs[0].offline and [row["step"] for row in wandb.runs[0].rows] == [1]
    text = capsys.readouterr().err
    assert "wandb cannot be reached: timed out" in text and "wandb sync folder" in text


def test_what_a_kill_kept_from_the_file_of_an_offline_run_is_logged_again(tmp_path, wandb):
    wandb.mode = "offline"
    wandb.init = lambda **options: wandb.Run(**options, mode="offline")
    killed(RunLogger(tmp_path, False, log_to=[{"type": "wandb"}]), range(1, 20))
    identity = json.loads((tmp_path / "trackers.json").read_text())["wandb"]["record"]["id"]
    file = tmp_path / "wandb" / f"offline-run-1-{identity}" / f"run-{identity}.wandb"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"".join(b"..\n\4step\x82\1%c%d..\x12\5_step\x82\1\x0299" % (len(str(n)), n)
                              for n in range(1, 14)) + b"\x12\4step\x82\1\2")
    again = RunLogger(tmp_path, False, first_step=8, log_to=[{"type": "wandb"}])
    killed(again, range(9, 22))
    assert [row["step"] for row in wandb.runs[1].rows] == list(range(14, 22))
    file.write_bytes(file.read_bytes()[:60])        # a kill lost more: two lines are left
    killed(RunLogger(tmp_path, False, first_step=8, log_to=[{"type": "wandb"}]), range(9, 11))
    assert [row["step"] for row in wandb.runs[2].rows] == list(range(3, 11))


@pytest.mark.slow      # the real package starts a server of its own
def test_the_real_wandb_keeps_a_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = RunLogger(tmp_path, False, log_to=[{"type": "wandb"}], config={"name": "x"})
    log_lines(log, [1, 2])
    log.image("val/examples", PICTURE, 2)
    log.close()
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/val/*.png"))) == 1


# --- mlflow ---

@pytest.mark.slow      # the real package makes a database
def test_mlflow_goes_on_in_the_run_of_its_first_session(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    store = {"type": "mlflow", "args": {"tracking_uri": f"sqlite:///{tmp_path}/m.db"}}
    for step in (0, 1):
        log = RunLogger(tmp_path, False, first_step=step, log_to=[store],
                        config={"name": "x", "trainer": {"epochs": 3, "keep": "y" * 9000}})
        log_lines(log, [2, 4 + 4 * step])           # 2: the session before was killed, and had it
        log.close("interrupted" if step == 0 else "finished", "end")
    entry = json.loads((tmp_path / "trackers.json").read_text())["mlflow"]
    client = mlflow.MlflowClient(store["args"]["tracking_uri"])
    run = client.get_run(entry["record"]["id"])
    assert run.info.status == "FINISHED" and run.data.params["trainer.epochs"] == "3"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [one.step for one in history] == [2, 4, 8]


class Client:
    """Stands in for mlflow.MlflowClient: runs in a dict, and one that was deleted."""

    runs: dict = {}

    def __init__(self, uri):
        self.uri = uri

    def get_experiment_by_name(self, name):
        return types.SimpleNamespace(experiment_id="1")

    def create_run(self, place, run_name, tags):
        identity = f"run{len(self.runs)}"
        self.runs[identity] = {"metrics": [], "params": {}, "status": "RUNNING", "tags": tags}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=identity))

    def update_run(self, identity, status):
        self.runs[identity]["status"] = status

    def log_batch(self, identity, metrics=(), params=()):
        assert len(metrics) <= 1000 and len(params) <= 100
        self.runs[identity]["metrics"] += metrics
        self.runs[identity]["params"].update(params)

    def log_text(self, identity, text, name):
        json.loads(text)

    def set_tag(self, identity, key, value):
        self.runs[identity]["tags"][key] = value

    def set_terminated(self, identity, status):
        self.runs[identity]["status"] = status


@pytest.fixture
def mlflow(monkeypatch):
    module: types.Any = types.ModuleType("mlflow")
    module.MlflowClient, module.MlflowException = Client, RuntimeError
    module.get_tracking_uri = lambda: "sqlite:///x.db"
    module.entities = types.SimpleNamespace(
        Param=lambda key, value: (key, value),
        Metric=lambda key, value, timestamp, step: (key, value, step))
    monkeypatch.setattr(Client, "runs", {})
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


def test_mlflow_gets_names_that_it_allows_and_no_two_become_one(tmp_path, mlflow):
    tracker = MLflow()
    tracker.start(Session(tmp_path, "run", {f"k{i}": i for i in range(250)}))
    tracker.log({"val/IoU/a (x)": 1.0, "val/IoU/a [x]": 2.0, "val/IoU/Straße": 3.0}, 7, None)
    run, = Client.runs.values()
    assert run["metrics"] == [("val/IoU/a _x_", 1.0, 7), ("val/IoU/a _x__2", 2.0, 7),
                              ("val/IoU/Straße", 3.0, 7)]
    assert len(run["params"]) == 250


def test_an_mlflow_run_that_is_gone_is_replaced_and_told(tmp_path, mlflow):
    said, kept = [], {}
    tracker = MLflow()
    tracker.start(Session(tmp_path, "run", {}, 4, {"id": "deleted"}, kept.update, said.append))
    assert kept["id"] == "run0" and "begins, with the steps to 4 from" in said[0]
    tracker.close("interrupted", "by SIGINT")
    assert Client.runs["run0"]["status"] == "KILLED"


def test_a_resumed_training_with_another_experiment_begins_a_run_there(tmp_path, mlflow):
    said, kept = [], {}
    record = {"id": "run7", "experiment": "old"}
    assert MLflow(experiment="new").start(
        Session(tmp_path, "run", {}, 4, record, kept.update, said.append)) == {}
    assert kept == {"id": "run0", "experiment": "new"}
    assert said[0].startswith("mlflow: the experiment was old, is new: a new run begins there")


# --- passwords ---

SECRET = "http://ann:pass@word@host:5000/mlflow"


def test_a_password_in_the_config_is_refused_and_not_printed(mlflow):
    with pytest.raises(ConfigError, match="tracking_uri contains a password") as raised:
        run_log.require_trackers({"trainer": {"log_to": [
            {"type": "mlflow", "args": {"tracking_uri": SECRET}}]}})
    assert "http://ann:***@host:5000" in str(raised.value) and "pass@" not in str(raised.value)
    assert "MLFLOW_TRACKING_URI" in str(raised.value)


def test_a_password_of_the_environment_is_in_no_message(tmp_path, mlflow, capsys):
    mlflow.get_tracking_uri = lambda: SECRET
    log = RunLogger(tmp_path, False, log_to=[{"type": "mlflow"}], config={})
    log.close()
    printed = capsys.readouterr().err + (tmp_path / "log.txt").read_text()
    assert "in http://ann:***@host:5000" in printed and "word@" not in printed


def test_a_password_in_an_error_of_a_service_is_not_printed(tmp_path, capsys):
    service = Service()
    service._note = lambda *call: (_ for _ in ()).throw(ConnectionError(f"no route to {SECRET}"))
    close_all([channel_to(service, tmp_path)], "finished", "finished")
    assert "no route to http://ann:***@host" in capsys.readouterr().err


# --- TensorBoard ---

def test_tensorboard_has_config_hyperparameters_best_values_and_an_example_batch(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    trainer = make(tmp_path, "trainer.tensorboard=true", "trainer.epochs=1")
    trainer.train()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert "config/text_summary" in events.Tags()["tensors"]
    assert b'"epochs": 1' in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    best = events.Scalars("best/Mean_IoU")
    assert [(one.step, one.value) for one in best] == [(4, pytest.approx(trainer.monitor.best))]
    start, end = (HParamsPluginData.FromString(events.SummaryMetadata(f"_hparams_/{name}")
                                               .plugin_data.content)
                  for name in ("session_start_info", "session_end_info"))
    assert start.session_start_info.hparams["optimizer.args.lr"].number_value == 0.1
    assert end.session_end_info.status == 1         # of the enumeration: success
    example, = events.Images("train/examples")
    assert example.step == 0 and example.width >= 8 + 4 + 8 and example.height > 2 * 8 + 4


def test_tensorboard_keeps_the_step_of_the_checkpoint_and_forgets_later_ones(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    for first, steps in ((0, [5, 10, 15]), (10, [15, 20])):
        log = RunLogger(tmp_path, first_step=first)
        for step in steps:
            log.scalars({"val/Mean_IoU": step + first}, step)
            log.best({"best/Mean_IoU": step + first}, step)
        log.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for tag in ("val/Mean_IoU", "best/Mean_IoU"):
        assert [(one.step, one.value) for one in events.Scalars(tag)] == [
            (5, 5), (10, 10), (15, 25), (20, 30)]


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_the_picture_of_an_input_is_what_was_normalized(order):
    import torch

    from utils.images.normalize import Normalize
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    images[:, 1] = 255 - images[:, 1]
    images[:, 2] //= 2
    normalize = Normalize([0.48, 0.45, 0.4], [0.22, 0.23, 0.24], order)
    assert torch.equal(normalize.pictures(normalize(images)), images)
