"""Refuses what is small in a file and huge in memory or time.

A pickle can name one object many times. Sixty lists that each contain the list before twice are
200 bytes in a file, and 2 ** 60 entries for whoever walks through them ("billion laughs"); nested
tuples of this kind hang in Python's hash, which no signal interrupts, when one is the key of a
dict. A config of a line can describe a network of terabytes.
"""
import contextlib
import math
import pickletools
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import torch
from torch.overrides import TorchFunctionMode

from utils.errors import CheckpointError

MOST_HASHED = 10 ** 7       # entries of tuples that the instructions of a pickle handle together
MOST_DEPTH = 100            # of values in each other
MOST_REPEATED = 20          # entries that are walked, for each that is stored; and a million more
_FORMS = (dict, list, tuple, set, frozenset)
_GETS, _PUTS = ("GET", "BINGET", "LONG_BINGET"), ("PUT", "BINPUT", "LONG_BINPUT")
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")


class TooMuch(Exception):
    """A file asks for far more memory or time than its size."""


def check_pickle(stream: BinaryIO):
    """Read one pickle's instructions, without executing them.

    Raises TooMuch if its tuples contain each other so often that a hash of one would take very
    long, and other errors if it is no pickle.
    """
    # Each entry is how many entries of nested tuples the value has: 0 if it is none. Lists and
    # dicts have no hash. None is a mark.
    stack: list[int | None] = []
    memo: dict[object, int] = {}
    handled = 0
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name in _GETS:
            stack.append(memo[argument])
        elif name in _PUTS or name == "MEMOIZE":
            memo[argument if name in _PUTS else len(memo)] = stack[-1] or 0
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "MARK":
            stack.append(None)
        else:
            taken = _take(stack, opcode.stack_before)
            size = sum(taken)
            handled += size
            if handled > MOST_HASHED:
                raise TooMuch("its tuples contain each other again and again")
            made = size + len(taken) if name in _TUPLES else 0
            stack.extend([made] * len(opcode.stack_after))


def _take(stack, before):
    """Take from the stack what an instruction uses, down to a mark if it uses one."""
    taken, single = [], len(before)
    if pickletools.markobject in before:
        single = before.index(pickletools.markobject)
        while (value := stack.pop()) is not None:
            taken.append(value)
    taken += [stack.pop() or 0 for _ in range(single)]
    return taken


def check_values(value: Any):
    """Raise TooMuch if nested values contain each other too often, too deep, or in a circle."""
    stored, walked = count_values(value)
    if walked > 10 ** 6 + MOST_REPEATED * stored:
        raise TooMuch("its values contain each other again and again")


def count_values(value: Any) -> tuple[int, int]:
    """(entries that nested dicts and lists store, entries that a walk through them meets).

    The second number is larger if a list or dict is in several places. Raises TooMuch for values
    that are nested too deep, or contain themselves.
    """
    sizes: dict[int, int] = {}          # id of a form -> entries that a walk through it meets
    stored = 0
    if not isinstance(value, _FORMS):
        return 0, 1
    open_forms = [(value, iter(_entries(value)), 1)]
    opened = {id(value)}
    while open_forms:
        form, entries, size = open_forms.pop()
        for entry in entries:
            stored += 1
            if not isinstance(entry, _FORMS):
                size += 1
            elif id(entry) in sizes:
                size += sizes[id(entry)]
            else:
                if id(entry) in opened or len(open_forms) >= MOST_DEPTH:
                    raise TooMuch("its values are nested too deep")
                stored -= 1             # met again when the form below is done
                open_forms.append((form, _again(entry, entries), size))
                open_forms.append((entry, iter(_entries(entry)), 1))
                opened.add(id(entry))
                break
        else:
            sizes[id(form)] = size
            opened.discard(id(form))
    return stored, sizes[id(value)]


def _again(entry, entries):
    yield entry
    yield from entries


def _entries(form):
    if isinstance(form, dict):
        yield from form
        yield from form.values()
    else:
        yield from form


@contextlib.contextmanager
def network_within(state: Mapping[str, torch.Tensor], where: str) -> Iterator[None]:
    """Raise CheckpointError while a network is built that is far larger than its weights.

    state: the weights that the network will get. Memory is refused before it is taken.
    """
    stored = sum(tensor.numel() for tensor in state.values())
    mode = _Allowance(ALLOWED_TIMES * stored + ALLOWED_MORE)
    try:
        with mode:
            yield
    except TooMuch:
        raise CheckpointError(f"refused: the config describes a network of at least "
                              f"{mode.taken / 1e6:.0f} million numbers, and the file contains "
                              f"{stored / 1e6:.3g} million", where,
                              "use the config of the run that wrote the weights") from None


# Tables that a network computes while it is built, and does not store, count as well.
ALLOWED_TIMES, ALLOWED_MORE = 8, 50_000_000
LEAST_COUNTED = 5000        # numbers of a tensor, at least: millions of tiny layers take hours
_FILLED = frozenset((torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full))


class _Allowance(TorchFunctionMode):
    """Counts the numbers of new tensors, and raises TooMuch before there are more than `most`."""

    def __init__(self, most: int):
        super().__init__()
        self.most, self.taken = most, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _FILLED:
            size = kwargs.get("size", args[0] if args and not isinstance(args[0], int) else args)
            self.taken += max(LEAST_COUNTED, math.prod(map(int, size)))
            if self.taken > self.most:
                raise TooMuch("its config describes too large a network")
        return func(*args, **kwargs)
