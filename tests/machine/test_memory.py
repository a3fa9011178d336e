"""What the process reports about its own memory."""
import mmap
import sys

import numpy as np
import pytest

from utils.machine import memory

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads files of the Linux kernel")
MEGABYTE = 1 << 20


@needs_linux
def test_a_large_array_raises_what_is_in_use_and_the_peak():
    before = memory.resident("VmRSS")
    # A new mapping: an array may get memory that earlier tests have left free.
    with mmap.mmap(-1, 64 * MEGABYTE) as mapping:
        mapping.write(bytes(64 * MEGABYTE))
        assert memory.resident("VmRSS") - before > 50 * MEGABYTE
        assert memory.peak_memory() >= before + 50 * MEGABYTE


@needs_linux
def test_the_peak_can_be_reset():
    array = np.ones(64 * MEGABYTE, np.uint8)
    high = memory.peak_memory()
    del array
    memory.forget_peak()
    if memory.peak_memory() >= high:
        pytest.skip("this kernel does not let a process reset its peak")
    assert memory.peak_memory() < high - 32 * MEGABYTE


def test_elsewhere_the_numbers_are_unknown(monkeypatch):
    def no_such_file(*_):
        raise FileNotFoundError
    monkeypatch.setattr("builtins.open", no_such_file)
    assert memory.free_memory() is None and memory.resident("VmRSS") is None
    assert memory.peak_memory() > 0        # from getrusage
