"""Studies with runs of a tenth of a second: made-up programs stand in for train.py and test.py."""
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.places import ROOT

CLASSES = ("road", "pavement", "building", "pole", "sign", "tree", "sky", "person", "car")
# What the made-up programs have in common. They read a file faults.json next to them:
# {"word of the name of a run": {"train" or "test": what}}.
_COMMON = """
import json, os, signal, sys, time
HERE = os.path.dirname(os.path.abspath(__file__))
def faults(name, kind):
    path = os.path.join(HERE, "faults.json")
    table = json.load(open(path)) if os.path.exists(path) else {}
    return [what for word, one in table.items() if word in name for what in one.get(kind, [])]
def fail(what):
    for one in what:
        if isinstance(one, int):
            print("error: it went wrong\\n  where: here", file=sys.stderr)
            sys.exit(one)
        if one == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if one == "silent":
            sys.exit(3)
"""
_TRAIN = _COMMON + """
values = dict(one.split("=", 1) for one in sys.argv[1:] if "=" in one)
device = sys.argv[sys.argv.index("--device") + 1] if "--device" in sys.argv else "all"
if "--dry-run" in sys.argv:
    print(f"ENet\\n4 epochs, {values.get('steps', 8)} steps, on {device}", file=sys.stderr)
    fail(faults(values.get("name", ""), "try"))
    sys.exit(0)
if "trainer.iterations" in values:
    fail(faults(json.load(open(sys.argv[2]))["name"], "measure"))
    time.sleep(0.01 * int(values["trainer.iterations"]))
    sys.exit(0)
names = [values[key] for key in values if key == "name" or key.endswith(".name")]
what = faults(names[-1], "train")
fail(what)
for name in names:
    folder = os.path.join(values["trainer.save_dir"], name, "11-29_08-00-00")
    if name != names[-1] and os.path.exists(os.path.join(folder, "last.pth")):
        continue            # a finished stage
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "trainings"), "a") as stream:
        stream.write("one more, threads %s, GPUs %s\\n" % (
            os.environ.get("OMP_NUM_THREADS"), os.environ.get("CUDA_VISIBLE_DEVICES")))
    if "waits" in what:
        signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
        open(os.path.join(folder, "ready"), "w").close()
        end = time.monotonic() + 60
        while not os.path.exists(os.path.join(HERE, "go")) and time.monotonic() < end:
            time.sleep(0.01)
    json.dump({"name": name, "seed": int(values["seed"])},
              open(os.path.join(folder, "config.json"), "w"))
    open(os.path.join(folder, "log.txt"), "w").write(
        "2026-11-29 08:00:00 training ENet to epoch 4\\n2026-11-29 08:00:30 saved\\n")
    open(os.path.join(folder, "metrics.jsonl"), "w").write("".join(
        json.dumps({"kind": "train", "step": k, "train/loss": 1 / k}) + "\\n" for k in (1, 2)))
    for file in ("last.pth", "model_best.pth"):
        if "no checkpoint" not in what:
            open(os.path.join(folder, file), "w").close()
"""
_TEST = _COMMON + """
sys.path.insert(0, {root!r})
from tests.support.studies import write_results
checkpoint, folder = (sys.argv[sys.argv.index(key) + 1] for key in ("-r", "-o"))
name = checkpoint.split(os.sep)[-3]
what = faults(name, "test")
fail(what)
seed = json.load(open(os.path.join(os.path.dirname(checkpoint), "config.json")))["seed"]
write_results(folder, 0.5 + 0.01 * seed + 0.1 * ("better" in name), checkpoint)
path = os.path.join(folder, "results.json")
for one in what:
    if one == "no scores":
        json.dump({"image_scores": "scores.csv"}, open(path, "w"))
    if one == "no table":
        open(os.path.join(folder, "scores.csv"), "w").write("x")
    if one == "nothing":
        os.remove(path)
"""


def write_results(folder: str | Path, score: float, checkpoint: str = "", **entries: Any) -> Path:
    """Writes results.json with the scores of three images; returns its path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["id,mIoU_I,mDice_I,Pixel_Accuracy,Binary_Accuracy," + ",".join(
        f"{kind} {name}" for name in CLASSES for kind in ("IoU", "Dice", "hits", "predicted",
                                                          "labelled"))]
    for k in range(3):
        hits, pixels = round(100 * score) + k, 100
        rows.append(f"image {k},{score + 0.01 * k},0.7,0.8,0.9," + ",".join(
            [f"0.5,0.6,{hits},{pixels},{pixels}"] * len(CLASSES)))
    (folder / "scores.csv").write_text("\n".join(rows) + "\n")
    path = folder / "results.json"
    path.write_text(json.dumps({
        "checkpoint": {"path": checkpoint}, "procedure": "max", "Mean_IoU": score,
        "mIoU_I": score + 0.01, "mDice_I": score + 0.1, "image_scores": "scores.csv",
        "classes": [{"name": name, "IoU": score} for name in CLASSES], **entries}))
    return path


def made_up_programs(folder: Path, faults: dict | None = None):
    """Writes train.py and test.py of a tenth of a second into a folder. faults: see _COMMON."""
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(_TRAIN)
    (folder / "test.py").write_text(_TEST.replace("{root!r}", repr(str(ROOT))))
    (folder / "faults.json").write_text(json.dumps(faults or {}))


def write_study(folder: Path, **content: Any) -> Path:
    """The file of a study of two rows on tiny Shapes, whose runs lie in `folder`/runs."""
    path = folder / "small.json"
    path.write_text(json.dumps({
        "config": str(ROOT / "config.json"), "seeds": 1, "baseline": "plain",
        "overrides": [f"trainer.save_dir={folder / 'runs'}", "trainer.tensorboard=false",
                      "train_loader.args.length=4", "val_loader.args.length=3",
                      "train_loader.args.num_workers=0", "val_loader.args.num_workers=0"],
        "axes": {"loss": {"better": [], "plain": "loss=CrossEntropyLoss2d"}}, **content}))
    return path


def wait_for(path: Path):
    """Waits until a file exists."""
    wait_until(lambda: os.path.exists(path))


def wait_until(true: Callable[[], bool], seconds: float = 30):
    """Waits until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
