"""utils/study/slurm.py: the job script, which a stub of sbatch runs on this machine."""
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from utils.errors import ConfigError
from utils.study.slurm import array_script, submit


def script(tmp_path, options="--time=8:00:00 --gres=gpu:1", runs=("a_s0-1", "b c_s1-2")):
    text = array_script("my study", runs, ["/studies/my study.json"], options, tmp_path)
    path = tmp_path / "array.sh"
    path.write_text(text)
    return path, text


def test_bash_accepts_the_script_with_awkward_names_and_options(tmp_path):
    path, text = script(tmp_path, "-p 'big gpus' --comment='it is $HOME' --time=1:00 -A me")
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    assert "#SBATCH -p 'big gpus'" in text and "#SBATCH --array=0-1" in text
    assert "#SBATCH --requeue" in text and "#SBATCH -A me" in text


@pytest.mark.parametrize("options,said", [
    ("--array=0-3", "is set by the study"), ("gpu", "is not an option"), ("'x", "No closing")])
def test_wrong_options_are_refused(tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        script(tmp_path, options)


def executable(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def stub_cluster(folder: Path) -> dict[str, str]:
    """sbatch and scontrol that run the tasks of an array job here, again when they are requeued."""
    executable(folder / "scontrol", f"""#!/bin/bash
[ "$1" = requeue ] && echo "${{2##*_}}" >> {folder}/requeued
""")
    executable(folder / "sbatch", f"""#!/bin/bash
last=$(sed -n 's/^#SBATCH --array=0-//p' "$1")
tasks=$(seq 0 "$last")
while [ -n "$tasks" ]; do
    rm -f {folder}/requeued
    for task in $tasks; do
        SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task bash "$1" >> {folder}/output 2>&1
        echo "$task $?" >> {folder}/ended
    done
    tasks=$(cat {folder}/requeued 2>/dev/null)
done
echo "Submitted batch job 7"
""")
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_a_task_that_ends_with_status_75_is_requeued_and_runs_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", stub_cluster(tmp_path)["PATH"])
    executable(tmp_path / "python", f"""#!/bin/bash
echo "$@" >> {tmp_path}/called
[ "${{@: -1}}" = a_s0-1 ] && [ "$(grep -c a_s0-1 {tmp_path}/called)" = 1 ] && exit 75
exit 0
""")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    path, _ = script(tmp_path)
    assert submit(path) == "Submitted batch job 7"
    assert (tmp_path / "ended").read_text().splitlines() == ["0 75", "1 0", "0 0"]
    assert (tmp_path / "called").read_text().splitlines()[1] == \
        "-m tools.study /studies/my study.json --only b c_s1-2"


def test_sigusr1_of_slurm_reaches_the_program_and_its_status_counts(tmp_path, monkeypatch):
    executable(tmp_path / "python", f"""#!/bin/bash
trap 'sleep 0.3; exit 75' USR1
touch {tmp_path}/ready
while true; do sleep 0.05; done
""")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    path, _ = script(tmp_path)
    env = {**os.environ, **stub_cluster(tmp_path), "SLURM_ARRAY_JOB_ID": "7",
           "SLURM_ARRAY_TASK_ID": "0"}
    task = subprocess.Popen(["bash", path], env=env)
    while not (tmp_path / "ready").exists():
        assert task.poll() is None
    task.send_signal(10)
    assert task.wait(20) == 75
    assert (tmp_path / "requeued").read_text() == "0\n"


def test_a_machine_without_sbatch_is_told_where_the_script_is(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no sbatch"):
        submit(tmp_path / "array.sh")
