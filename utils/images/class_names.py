"""Names of classes: what they may be, how they are drawn, and where two lists of them differ."""
import unicodedata
from collections.abc import Sequence
from itertools import zip_longest

from utils.errors import shown
from utils.images.text import can_draw, in_latin, shortened, tell_replaced

LONGEST = 200           # characters of a name: reports have columns of that width
_SIZE, _WIDEST = 16, 20     # of a name in a picture: at most 20 times its letters' size


def mistake_in(names: Sequence[str]) -> str | None:
    """What makes a list of class names unusable in reports; None if nothing does.

    A name must be text that can be printed and encoded, and no two may be equal.
    """
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            return f"class {number} has no name"
        if not name.isprintable():      # control characters, line ends, halves of surrogate pairs
            return f"the name of class {number} cannot be printed: {shown(name)[:60]}"
        if len(name) > LONGEST:
            return (f"the name of class {number} has {len(name)} characters; the limit is "
                    f"{LONGEST}")
        other = first.setdefault(unicodedata.normalize("NFC", name.strip()), number)
        if other != number:
            return f"classes {other} and {number} have the same name, {name!r}"
    return None


def usable(names: Sequence[str]) -> list[str]:
    """The names as a file of an older version holds them, changed so that mistake_in finds nothing.

    Equal names get their class id: "wheel (3)".
    """
    texts = [shown(name).strip()[:LONGEST - 20] or f"class {k}" for k, name in enumerate(names)]
    plain = [unicodedata.normalize("NFC", text) for text in texts]
    return [f"{text} ({k})" if plain.count(plain[k]) > 1 else text for k, text in enumerate(texts)]


def drawable(names: Sequence[str]) -> list[str]:
    """The names as pictures show them: short, and in letters that a font of this machine has.

    Where none has them, a name is written in Latin letters if it can be, else as "class 3".
    """
    drawn = []
    for number, name in enumerate(names):
        name = name[:LONGEST]
        if not can_draw(name):
            latin = in_latin(name) or f"class {number}"
            tell_replaced(name, latin)
            name = latin
        drawn.append(shortened(name, _SIZE, _WIDEST * _SIZE) if name.strip() else f"class {number}")
    return drawn


def first_difference(one: Sequence[str], other: Sequence[str], palette: Sequence = (),
                     other_palette: Sequence = ()) -> str | None:
    """The first difference between two lists of names, or else of colors, as "class 2 is 'a' and
    'b'"; None if there is none. The caller names the two lists, in this order.
    """
    if len(one) != len(other):
        return f"there are {len(one)} and {len(other)} classes"
    for number, (name, second) in enumerate(zip(one, other, strict=True)):
        if name != second:
            return f"class {number} is {name!r} and {second!r}"
    for number, (color, second) in enumerate(zip(palette, other_palette, strict=False)):
        if list(color) != list(second):
            return (f"class {number}, {one[number]!r}, has the color {list(color)} and "
                    f"{list(second)}")
    return None


def differences(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """All differences between two lists of names: "there are 3 and 2 classes", "class 1 is 'a' and
    'b'", "class 2 is 'c' and missing". The caller names the two lists, in this order.
    """
    found = [] if len(one) == len(other) else [f"there are {len(one)} and {len(other)} classes"]
    for number, pair in enumerate(zip_longest(one, other)):
        if pair[0] != pair[1]:
            first, second = ("missing" if name is None else repr(name) for name in pair)
            found.append(f"class {number} is {first} and {second}")
    return found


def moved(names: Sequence[str], other: Sequence[str]) -> str | None:
    """A name that stands at another place of the other list, as "'a' is class 0 and 2"; or None."""
    places = {name: number for number, name in enumerate(other)}
    for number, name in enumerate(names):
        if places.get(name, number) != number:
            return f"{name!r} is class {number} and {places[name]}"
    return None
