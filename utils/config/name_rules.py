"""How the names of images and labels may differ: rules, guessed by comparing names in pairs.

What differs between the name of an image and that of its label ("images" and "masks", or nothing
and "_mask") is the same for many pairs, so each difference gets as many votes as it makes pairs.
"""
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from utils.images.picture_files import IMAGE_SUFFIXES, evenly_spaced

_TOKEN = re.compile(r"[^\W\d_]+|\d+|[\W_]")
_CUT_TOKENS = 9          # that a difference may have, at most
_LABELS_COMPARED = 200   # half as many, and a tenth of the images, where twice as much may differ
_IMAGES_COMPARED = 4000
_MOST_KINDS = 8          # labels that differ from one image in the same place; more are numbers
_RULES = 16


class Rule(NamedTuple):
    """The patterns of the image names and of the label names (utils/images/name_pattern.py)."""

    image: str
    label: str


def guessed_rules(images: Sequence[str], labels: Sequence[str], one_folder: bool,
                  twice: bool) -> list[Rule]:
    """Rules that pair some of the names, those with the most votes first.

    images, labels: names relative to their folders, with "/" and extension. one_folder: both lists
    contain the same files. twice: look for names that differ in a folder and in the file name.
    """
    labels = evenly_spaced(labels, _LABELS_COMPARED // (2 if twice else 1))
    stems = [os.path.splitext(name) for name in labels]
    places = defaultdict(dict)
    for index, (stem, _) in enumerate(stems):
        for key, cut in _cuts(stem, twice):
            places[key].setdefault(index, cut)
    places = {key: found for key, found in places.items() if len(found) <= _MOST_KINDS}
    voters = defaultdict(set)
    for name in _related(images, labels, _IMAGES_COMPARED // (10 if twice else 1)):
        image_stem, image_suffix = os.path.splitext(name)
        for key, cut in _cuts(image_stem, twice):
            for index, label_cut in places.get(key, {}).items():
                rule = _rule(key, cut, label_cut, image_suffix, stems[index][1], one_folder)
                if rule:
                    voters[rule].add(index)
    votes = Counter({rule: len(found) for rule, found in voters.items()})
    least = max(votes.values(), default=0) / 20
    return [rule for rule, count in votes.most_common(_RULES) if count > least]


def _related(images: Sequence[str], labels: Sequence[str], most: int) -> Sequence[str]:
    """At most `most` images; of many, those that contain the rarest token of one of the labels."""
    if len(images) <= most:
        return images
    frequency = Counter(token for name in images for token in set(_TOKEN.findall(name)))
    rare = {min(_TOKEN.findall(name), key=lambda token: frequency[token] or len(images))
            for name in labels}
    related = [name for name in images if not rare.isdisjoint(_TOKEN.findall(name))]
    return evenly_spaced(related, most)


def _cuts(stem: str, twice: bool) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Every way to cut a piece out of a name, as (what remains, what was cut out).

    twice: also a folder is cut out, and the piece of the file name.
    """
    if not twice:
        for before, piece, after in _pieces(stem):
            yield (before, after), (piece,)
        return
    folder, slash, name = stem.rpartition("/")
    places = [match.start() for match in re.finditer(r"(?<![^/])", folder)] if slash else [0]
    for place in places:
        rest = folder[place:] + slash
        part = rest.partition("/")[0]
        for before, piece, after in _pieces(name):
            # A folder that is another one for the labels, and one that only one of both has.
            if part:
                yield (folder[:place], rest[len(part):] + before, after), (part, piece)
                yield (folder[:place], rest[len(part) + 1:] + before, after), (f"{part}/", piece)
            yield (folder[:place], rest + before, after), ("", piece)


def _pieces(text: str) -> Iterator[tuple[str, str, str]]:
    ends = [0]
    for match in _TOKEN.finditer(text):
        ends.append(match.end())
    for i, start in enumerate(ends):
        for end in ends[i:i + _CUT_TOKENS]:
            yield text[:start], text[start:end], text[end:]


def _rule(rest, image_cut, label_cut, image_suffix, label_suffix, one_folder) -> Rule | None:
    """The rule of one pair; None if its names do not differ in all the places that were cut."""
    if not any(image_cut) and not any(label_cut):
        if not one_folder:
            return Rule("*", "*")
        return Rule("*", f"*{label_suffix.lower()}") if image_suffix != label_suffix else None
    if any(_more_alike(one, two) for one, two in zip(image_cut, label_cut, strict=True)):
        return None
    if len(rest) == 2:
        shared = os.path.commonprefix([image_cut[0], label_cut[0]])
        if shared in (image_cut[0], label_cut[0]):      # "train" and "trainannot"
            rest = (rest[0] + shared, rest[1])
            image_cut, label_cut = ((cut[0][len(shared):],) for cut in (image_cut, label_cut))
    return Rule(_text(rest, image_cut, label_cut, image_suffix),
                _text(rest, label_cut, image_cut, label_suffix))


def _more_alike(one, two):
    """Whether two pieces are equal, or begin or end alike: another cut names what differs."""
    first, second = _TOKEN.findall(one), _TOKEN.findall(two)
    return one == two or bool(first and second and (first[0] == second[0]
                                                    or first[-1] == second[-1]))


def _text(rest: Sequence[str], own: Sequence[str], other: Sequence[str], suffix: str) -> str:
    """The pattern of one of two names: `own` is cut out of it, and `rest` is what both share."""
    parts = []
    for i, shared in enumerate(rest):
        before = i > 0 and bool(own[i - 1] and other[i - 1])
        after = i < len(own) and bool(own[i] and other[i])
        parts += _stars(shared, i == 0, before, after)
        if i < len(own) and own[i]:
            parts.append(own[i])
    text = "".join(_without_neighbors(parts))
    text = text if "*" in text else f"*/{text}"         # "image.png" in a folder for each pair
    # A name such as x.jpg.png: without its extension the pattern would seem to end with one.
    return text + suffix if os.path.splitext(text)[1].lower() in IMAGE_SUFFIXES else text


def _stars(shared: str, first: bool, before: bool, after: bool) -> Iterator[str]:
    """Stars for a text that varies; separators at the pieces that differ belong to the pattern."""
    if first:
        shared = shared.rpartition("/")[2]
    head = shared[:1] if shared[:1] == "/" or (before and shared[:1] in tuple("_-. ")) else ""
    shared = shared[len(head):]
    tail = shared[-1:] if shared[-1:] == "/" or (after and shared[-1:] in tuple("_-. ")) else ""
    shared = shared[:len(shared) - len(tail)]
    if head:
        yield head
    if shared:
        yield "**" if head == "/" or "/" in shared else "*"
    if tail:
        yield tail


def _without_neighbors(parts: Iterable[str]) -> list[str]:
    """The parts of a pattern with one star (or two) in place of several in a row."""
    result: list[str] = []
    for part in parts:
        if part in ("*", "**") and result and result[-1] in ("*", "**"):
            result[-1] = max(part, result[-1])
        else:
            result.append(part)
    return result
