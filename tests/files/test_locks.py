"""Locks between processes."""
import errno
import fcntl
import os
import subprocess
import sys

import pytest

from tests.support.places import ROOT
from utils.files import locks

ADD_ONE = """
import sys, time
from pathlib import Path
from utils.files.locks import release, take
number = Path(sys.argv[1]) / "number"
for _ in range(25):
    stream = take(number.with_name(".lock"), 60.0)
    assert stream
    value = int(number.read_text())
    time.sleep(0.001)
    number.write_text(str(value + 1))
    release(number.with_name(".lock"), stream)
"""
HOLD = """
import sys, time
from utils.files.locks import take
stream = take(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def told():
    locks._told.clear()
    yield
    locks._told.clear()


def python(code, *args, **options):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], cwd=ROOT, **options)


def test_no_change_of_several_processes_is_lost(tmp_path):
    """Four processes; each starts in a tenth of a second."""
    (tmp_path / "number").write_text("0")
    writers = [python(ADD_ONE, tmp_path) for _ in range(4)]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    assert (tmp_path / "number").read_text() == "100"
    assert os.listdir(tmp_path) == ["number"]


def test_a_lock_ends_with_a_killed_process(tmp_path):
    holder = python(HOLD, tmp_path / "lock", stdout=subprocess.PIPE)
    try:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        assert locks.take(tmp_path / "lock") is None
        assert locks.take(tmp_path / "lock", 0.1) is None
    finally:
        holder.kill()
        holder.communicate()
    stream = locks.take(tmp_path / "lock")
    assert stream and (tmp_path / "lock").exists()
    locks.release(tmp_path / "lock", stream)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_costs_one_notice(tmp_path, monkeypatch, capsys, told, code):
    def missing(*_):
        raise OSError(code, os.strerror(code))
    monkeypatch.setattr(fcntl, "lockf", missing)
    for name in ("a", "b"):
        stream = locks.take(tmp_path / name)
        assert stream
        locks.release(tmp_path / name, stream)
    said = capsys.readouterr().err
    assert said.count("this file system has no locks") == 1 and os.strerror(code) in said
