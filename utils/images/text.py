"""Text in pictures, in any alphabet.

Pillow's own font has little more than ASCII. Text with other letters is drawn with a font of this
machine that has all of them. If there is none, pictures show Latin letters or an escaped form, and
a notice says so once.
"""
import functools
import os
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli.console import notice
from utils.errors import shown

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

Color = tuple[int, int, int]

OWN = ""                    # stands for the path of Pillow's own font
MOST_FONTS = 3000           # files that are examined
_SMALLEST = 8               # pixels; smaller letters cannot be read
_STYLES = ("bold", "italic", "oblique", "light", "thin", "black", "mono", "cond", "serif", "heavy")
_PLACEHOLDERS = ("lastresort", "blank")         # fonts with a sign for everything, or with nothing
_LATIN = {
    **dict(zip("абвгдеёжзийклмнопрстуфхцчшщъыьэюяіїєґўђѓјљњћќџѕ",
               "a b v g d e yo zh z i y k l m n o p r s t u f kh ts ch sh shch ' y ' e yu ya i yi "
               "ye g u dj gj j lj nj c kj dz dz".split(" "), strict=True)),
    **dict(zip("αβγδεζηθικλμνξοπρσςτυφχψω",
               "a v g d e z i th i k l m n x o p r s s t y f ch ps o".split(" "), strict=True)),
    "ß": "ss", "ø": "o", "æ": "ae", "œ": "oe", "đ": "d", "ł": "l", "ı": "i", "þ": "th", "ð": "d",
    "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "x", "…": "..."}

_used: list[str] = []           # fonts that have drawn something; they are tried first
_absent: set[str] = set()       # scripts of which no font has a letter
_told = False


def write_text(pen: "ImageDraw", place: tuple[float, float], words: str, size: int, color: Color,
               anchor: str = "lm"):
    """Write `words` on a picture. place: (x, y) of the anchor (as in Pillow: lm is left, middle).

    size: in pixels. Letters that no font has are replaced (`drawable`).
    """
    words = drawable(words)
    pen.text(place, words, color, _font(_source(_letters(words)) or OWN, size), anchor)


@functools.lru_cache(8192)
def text_width(words: str, size: int) -> float:
    """The width in pixels of what `write_text` draws."""
    words = drawable(words)
    return _font(_source(_letters(words)) or OWN, size).getlength(words)


def shortened(words: str, size: int, width: float, keep_end: bool = False) -> str:
    """The words, at most `width` pixels wide: "…" stands for the end (or the beginning) of more."""
    if text_width(words, size) <= width:
        return words
    dots = "…" if can_draw(words + "…") else "..."

    def part(letters):
        return dots + words[len(words) - letters:] if keep_end else words[:letters].rstrip() + dots

    few, many = 0, len(words)       # the longest part that fits, by halving
    while few < many:
        middle = (few + many + 1) // 2
        few, many = (middle, many) if text_width(part(middle), size) <= width else (few, middle - 1)
    return part(few)


def can_draw(words: str) -> bool:
    """Whether a font has all letters of the words."""
    return _source(_letters(words)) is not None


def drawable(words: str) -> str:
    """The words if a font has their letters, else in Latin letters, else with escapes (\\u80cc)."""
    if can_draw(words):
        return words
    latin = in_latin(words)
    if latin is None:
        latin = "".join(letter if _source(_letters(letter)) is not None else
                        letter.encode("ascii", "backslashreplace").decode() for letter in words)
    tell_replaced(words, latin)
    return latin


def tell_replaced(words: str, drawn: str):
    """Say, the first time only, that pictures show something else for lack of a font."""
    global _told
    if not _told:
        _told = True
        notice(f"no font of this machine has all letters of {shown(words)!r}: pictures show "
               f"{drawn!r}, and other such names likewise (to change that, install a font for the "
               "script, such as one of Noto Sans)")


def in_latin(words: str) -> str | None:
    """The words in ASCII letters: without accents, by sound, or by the name of a sign; or None.

    None: a letter has no such form, as those of Chinese, Arabic and Hebrew.
    """
    parts = []
    for letter in unicodedata.normalize("NFC", words):
        plain = letter if letter.isascii() else _as_latin(letter)
        if plain is None:
            return None
        parts.append(plain)
    return "".join(parts) if "".join(parts).strip() else None


def _as_latin(letter):
    """One letter in ASCII, or None."""
    lower = letter.lower()
    if lower in _LATIN:
        plain = _LATIN[lower]
        return plain if lower == letter else plain.capitalize()
    parts = [part for part in unicodedata.normalize("NFKD", letter)
             if not unicodedata.combining(part)]
    if all(part.isascii() for part in parts):       # also an accent alone: nothing is left of it
        return "".join(parts)
    if len(parts) == 1 and parts[0].lower() in _LATIN:
        return _as_latin(parts[0])
    name = unicodedata.name(letter, "")
    for script in ("HIRAGANA LETTER ", "KATAKANA LETTER ", "HANGUL SYLLABLE "):
        if name.startswith(script):
            return name.removeprefix(script).removeprefix("SMALL ").lower()
    return f"[{name.lower()}]" if name and unicodedata.category(letter) == "So" else None


@functools.lru_cache(64)
def _font(path: str, size: int) -> "FreeTypeFont":
    from PIL import ImageFont
    size = max(size, _SMALLEST)
    font = ImageFont.load_default(size) if path == OWN else ImageFont.truetype(path, size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow is built without FreeType"
    return font


def _letters(words: str) -> frozenset[str]:
    """The signs of a text that need a glyph."""
    return frozenset(sign for sign in words
                     if not sign.isspace() and unicodedata.category(sign) not in ("Cf", "Cc"))


@functools.lru_cache(4096)
def _source(letters: frozenset[str]) -> str | None:
    """The path of a font with all these letters, OWN, or None."""
    if not _lacking(OWN, letters):
        return OWN
    if _absent.intersection(map(_script, letters)) or _needs_shaping(letters):
        return None
    found = set()
    for path in [*_used, *_system_fonts()]:
        lacking = _lacking(path, letters)
        if not lacking:
            if path not in _used:
                _used.append(path)
            return path
        found |= letters - lacking
    _absent.update(set(map(_script, letters - found)) - set(map(_script, found)))
    return None


def _script(letter):
    """The first word of its name in Unicode: LATIN, CJK, ARABIC, …"""
    return unicodedata.name(letter, "?").split()[0]


def _needs_shaping(letters):
    """Whether letters change with their neighbors or run to the left, and Pillow cannot do it.

    It can with the library Raqm, which its wheels contain.
    """
    from PIL import features
    return any(unicodedata.bidirectional(letter) in ("R", "AL")
               or unicodedata.category(letter) in ("Mn", "Mc") for letter in letters) \
        and not features.check("raqm")


@functools.lru_cache(1024)
def _lacking(path: str, letters: frozenset[str]) -> frozenset[str]:
    """The letters that a font has no glyph for; all of them if it cannot be used."""
    from PIL import ImageFont
    if path == OWN and all(map(_is_plain, letters)):
        return frozenset()
    try:
        font = _font(OWN, 16) if path == OWN else \
            ImageFont.truetype(path, 16, layout_engine=ImageFont.Layout.BASIC)
        # A font draws one and the same sign, often a box, for whatever it lacks.
        none = _drawn(font, "\U0010ffff")
        return frozenset(letter for letter in letters
                         if _drawn(font, letter) in (none, (b"", (0, 0))))
    except (OSError, ValueError):       # damaged, or with bitmaps of other sizes only
        return letters


def _is_plain(letter):
    return "!" <= letter <= "~"


def _drawn(font, letter):
    mask = font.getmask(letter)
    return bytes(mask), mask.size


@functools.cache
def _system_fonts() -> tuple[str, ...]:
    """The font files of this machine, upright sans-serif ones of normal weight first."""
    found = []
    for folder in _font_folders():
        for place, folders, names in os.walk(folder):
            folders.sort()
            found += [os.path.join(place, name) for name in sorted(names)
                      if name.lower().endswith((".ttf", ".otf", ".ttc"))
                      and not any(word in name.lower() for word in _PLACEHOLDERS)]

    def order(path):
        name = os.path.basename(path).lower()
        return (sum(style in name for style in _STYLES) - ("sans" in name),
                "regular" not in name, name, path)
    return tuple(sorted(found, key=order)[:MOST_FONTS])


def _font_folders() -> list[Path]:
    """Where systems keep fonts."""
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", r"C:\Windows"), "Fonts"),
                Path(os.environ.get("LOCALAPPDATA", home), "Microsoft", "Windows", "Fonts")]
    if sys.platform == "darwin":
        return [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    own = os.environ.get("XDG_DATA_HOME") or home / ".local/share"
    return [home / ".fonts", *(Path(folder, "fonts") for folder in (own, *shared.split(":")))]
