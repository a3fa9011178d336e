"""The names of classes in a data.yaml of YOLO, without a package for YAML.

    names: [cat, "dog, large"]      names: {0: cat, 1: dog}      names:            names:
                                                                 - cat               0: cat
                                                                 - dog               1: dog

Everything else in the file is passed over. YAML has many more ways to write a list; a file that
uses one of them is refused with the line.
"""
import json
import re

from utils.annotations.annotation_set import shortly
from utils.errors import DataError

_MOST_NAMES = 32767
_QUOTED = r"'(?:[^']|'')*'|\"(?:[^\"\\]|\\.)*\""
_FLOW_ITEM = re.compile(rf"\s*(?:(\d{{1,9}})\s*:\s+)?({_QUOTED}|[^\s,'\"\[\]{{}}][^,\[\]{{}}]*)\s*")


def yaml_names(data: bytes, place: str) -> dict[int, str]:
    """{number: name} of the classes. Raises DataError, with the line, if they cannot be read."""
    text = data.decode("utf-8-sig", "replace")
    lines = [(number, _without_comment(line).rstrip())
             for number, line in enumerate(text.splitlines(), 1)]
    starts = [i for i, (_, line) in enumerate(lines) if re.match(r"names\s*:(\s|$)", line)]
    if len(starts) != 1:
        raise DataError(f"{len(starts) or 'no'} lines begin with \"names:\"; expected one", place)
    number, line = lines[starts[0]]
    rest, below = line.partition(":")[2].strip(), lines[starts[0] + 1:]
    at = f"{place}:{number}"
    names = _flow(rest, below, at) if rest[:1] and rest[0] in "[{" else _block(rest, below, place)
    if not names:
        raise DataError("names is empty", at)
    counts = [_number(line) for _, line in lines if re.match(r"nc\s*:(\s|$)", line)]
    if counts and counts[0] != len(names):
        raise DataError(f"nc is {counts[0]}, and there are {len(names)} names", at)
    return names


def _flow(rest, below, at):
    """The names of "[a, b]" or "{0: a}", which may go on in the lines below."""
    opening, closing = rest[0], {"[": "]", "{": "}"}[rest[0]]
    text = " ".join((rest, *(line.strip() for _, line in below)))
    names, place = {}, 1
    while not re.match(rf"\s*\{closing}", text[place:place + 1000]):
        item = _FLOW_ITEM.match(text, place)
        if not item or (item[1] is not None) != (opening == "{"):
            raise DataError(f"names have {shortly(text[place:place + 40].strip())} where a name "
                            "was expected", at, "write names: [a, b, c]")
        _add(names, int(item[1]) if item[1] else len(names), item[2], at)
        place = item.end()
        if text[place:place + 1] == ",":
            place += 1
        elif text[place:place + 1] != closing:
            raise DataError(f"names have {shortly(text[place:place + 40].strip())} where a comma "
                            f"or {closing} was expected", at, "write names: [a, b, c]")
    return names


def _block(rest, below, place):
    """The names of "- a" or "0: a" in a line each."""
    names: dict[int, str] = {}
    if rest:
        raise DataError(f"names are {shortly(rest)}; expected a list", place,
                        "write names: [a, b, c]")
    for number, line in below:
        if not line.strip():
            continue
        item = re.fullmatch(r"\s*-\s+(.*)", line)
        pair = re.fullmatch(r"\s+(\d{1,9}|'\d{1,9}'|\"\d{1,9}\")\s*:\s+(.*)", line)
        if item:
            _add(names, len(names), item[1], f"{place}:{number}")
        elif pair:
            _add(names, int(pair[1].strip("'\"")), pair[2], f"{place}:{number}")
        elif line[0] in " \t-":
            raise DataError(f"{shortly(line.strip())} is not a name in a list", f"{place}:{number}",
                            "write names: [a, b, c]")
        else:
            break               # the next key
    return names


def _add(names, number, text, at):
    """Add the name that a text of YAML stands for. Raises DataError."""
    text = text.strip()
    if text[:1] == "'" and text[-1:] == "'" and len(text) > 1:
        name = text[1:-1].replace("''", "'")
    elif text[:1] == '"' and text[-1:] == '"' and len(text) > 1:
        try:
            name = json.loads(text)     # its escapes are nearly those of JSON
        except ValueError:
            raise DataError(f"the name {shortly(text)} cannot be read", at) from None
    else:
        name = text
    if not name or name[0] in "&*!|>%@`[{":
        raise DataError(f"{shortly(text)} is not a name", at, "write names: [a, b, c]")
    if number in names or len(names) >= _MOST_NAMES:
        raise DataError(f"class {number} has two names" if number in names else
                        f"more than {_MOST_NAMES} names", at)
    names[number] = name


def _without_comment(line):
    quote, before = "", " "
    for place, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote and before != "\\" else quote
        elif letter in "'\"" and before in " \t,:[{":
            quote = letter
        elif letter == "#" and before in " \t":
            return line[:place]
        before = letter
    return line


def _number(line):
    text = line.partition(":")[2].strip()
    return int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else text
