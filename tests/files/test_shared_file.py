"""Files that several programs change at the same time."""
import errno
import fcntl
import json
import multiprocessing

import pytest

from utils.errors import DataError
from utils.files import shared_file
from utils.files.shared_file import change_file, set_aside


def added(path, name):
    """Add a name to the list in a JSON file."""
    def changed(data):
        return json.dumps([*json.loads(data or b"[]"), name]).encode()

    change_file(path, changed, lambda data: name in json.loads(data or b"[]"))


def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


def _add_many(path, start, names, locks):
    if not locks:
        fcntl.flock = no_locks      # in this process
        shared_file.PAUSE = 0.1
    start.wait()
    for name in names:
        added(path, name)


@pytest.mark.parametrize("locks, each", [(True, 20), (False, 3)])
def test_changes_of_many_processes_at_once_are_all_kept(tmp_path, locks, each):
    """With locks, and where the file system has none."""
    path, context = tmp_path / "names.json", multiprocessing.get_context("fork")
    start = context.Barrier(4)
    groups = [[f"{writer}.{n}" for n in range(each)] for writer in range(4)]
    writers = [context.Process(target=_add_many, args=(path, start, names, locks))
               for names in groups]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert all(writer.exitcode == 0 for writer in writers)
    assert sorted(json.loads(path.read_bytes())) == sorted(sum(groups, []))
    assert [file.name for file in tmp_path.iterdir()] == ["names.json"]     # no lock is left


@pytest.mark.parametrize("failure", [errno.ENOLCK, errno.EBADF, errno.ENOTSUP])
def test_a_change_without_a_lock_is_made_again_if_another_program_replaced_it(
        tmp_path, monkeypatch, failure):
    def fails(*_):
        raise OSError(failure, "no")

    def others_write(_):
        if first:
            path.write_text(first.pop())

    path, first = tmp_path / "x.json", ['["other"]']
    monkeypatch.setattr(fcntl, "flock", fails)
    monkeypatch.setattr(shared_file.time, "sleep", others_write)
    added(path, "mine")
    assert json.loads(path.read_text()) == ["other", "mine"]


def test_a_file_that_changes_between_reading_and_replacing_is_read_again(tmp_path):
    path, tries = tmp_path / "x", []

    def changed(data):
        tries.append(data)
        if len(tries) == 1:
            path.write_bytes(b"other")
        return (data or b"") + b"+mine"

    change_file(path, changed, lambda data: True)
    assert tries == [None, b"other"] and path.read_bytes() == b"other+mine"


def test_a_suspended_program_with_the_lock_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_file, "PATIENCE", 0.05)
    monkeypatch.setattr(shared_file, "PAUSE", 0.0)
    with shared_file.locked(tmp_path) as alone:
        assert alone
        added(tmp_path / "x.json", "mine")
    assert json.loads((tmp_path / "x.json").read_text()) == ["mine"]


def test_a_file_that_cannot_be_read_is_an_error_and_no_damage(tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(DataError, match="cannot read"):
        added(tmp_path / "x.json", "mine")
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_what_is_set_aside_replaces_nothing_and_is_kept_once(tmp_path):
    path = tmp_path / "x.json"
    assert set_aside(path, b"one") == (tmp_path / "x.json.old", True)
    assert set_aside(path, b"two") == (tmp_path / "x.json.old-2", True)
    assert set_aside(path, b"one") == (tmp_path / "x.json.old", False)
    assert (tmp_path / "x.json.old").read_bytes() == b"one"
