"""Writes and sends a Slurm array job in which each task works on one run of a study.

Slurm sends SIGUSR1 before the time limit; the training then saves and ends with status 75, and the
task puts itself back into the queue (scontrol requeue), where it continues.
"""
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import ConfigError, first_line, shown
from utils.study.execute import REQUEUE_STATUS, ROOT

_WARNING = 300      # seconds before the time limit at which Slurm signals a task
_SCRIPT = """\
#!/bin/bash
# {count} runs of the study {name}, each in a task of its own. Made by: {command}
#SBATCH --job-name={job_name}
#SBATCH --array=0-{last}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@{warning}
#SBATCH --output={output}
{options}
runs=(
{runs}
)
cd {folder} || exit 1
{python} -m tools.study {arguments} --only "${{runs[$SLURM_ARRAY_TASK_ID]}}" &
program=$!
trap 'kill -USR1 "$program"' USR1
trap 'kill -TERM "$program"' TERM
status=0
wait "$program" || status=$?
# A trapped signal ends `wait` at once, while the program still saves.
while kill -0 "$program" 2>/dev/null; do
    status=0
    wait "$program" || status=$?
done
if [ "$status" -eq {requeue} ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$status"
"""


def array_script(name: str, runs: Sequence[str], arguments: Sequence[str], options: str,
                 folder: Path) -> str:
    """The text of the job script.

    runs: the names of the runs, one task each. arguments: of tools.study, with the study file.
    options: of sbatch, such as "--time=8:00:00 --gres=gpu:1". folder: for the output of the tasks.
    Raises ConfigError for options that the script sets itself.
    """
    words = _words(options)
    for word in words:
        if re.match(r"(--array|-a)\b", word):
            raise ConfigError(f"{word} is set by the study, one task for each run", "--slurm",
                              "to run at most N at once, sbatch takes ArrayTaskThrottle=N later "
                              "(scontrol update)")
    return _SCRIPT.format(
        count=len(runs), name=_one_line(name), command=_one_line(shlex.join(sys.argv)),
        job_name=re.sub(r"[^\w.-]+", "_", name)[:40], last=len(runs) - 1, warning=_WARNING,
        output=_one_line(folder / "slurm-%A_%a.out"),
        options="\n".join(f"#SBATCH {line}" for line in words),
        runs="\n".join(f"    {shlex.quote(run)}" for run in runs),
        folder=shlex.quote(str(ROOT)), python=shlex.quote(sys.executable),
        arguments=shlex.join(arguments), requeue=REQUEUE_STATUS)


def submit(script: Path) -> str:
    """Send a job script; returns what sbatch says. Raises ConfigError if it does not take it."""
    try:
        done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True,
                              errors="replace")
    except FileNotFoundError:
        raise ConfigError("this machine has no sbatch", "--submit",
                          f"copy the script and send it where there is one: {shown(script)}") \
            from None
    if done.returncode:
        raise ConfigError(f"sbatch ended with status {done.returncode}: "
                          f"{first_line(ValueError(done.stderr or done.stdout))}", shown(script),
                          "correct the options of --slurm")
    return done.stdout.strip()


def _words(options: str) -> list[str]:
    """The options of sbatch, one for each line: "-p gpu --time=1" -> ["-p gpu", "--time=1"]."""
    try:
        parts = shlex.split(options)
    except ValueError as error:
        raise ConfigError(f"{options!r}: {error}", "--slurm") from None
    lines: list[list[str]] = []
    for part in parts:
        if part.startswith("-"):
            lines.append([part])
        elif lines and len(lines[-1]) == 1 and "=" not in lines[-1][0]:
            lines[-1].append(part)
        else:
            raise ConfigError(f"{part!r} is not an option of sbatch", "--slurm",
                              "write them as on its command line: \"--time=8:00:00 --gres=gpu:1\"")
    return [" ".join(_one_line(part) if re.fullmatch(r"[\w@%+=:,./-]+", part)
                     else shlex.quote(_one_line(part)) for part in line) for line in lines]


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
