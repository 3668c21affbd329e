"""Text that a guest chose, made harmless for a terminal: every character shows itself and nothing else.

References: Unicode Standard 15.0, sections 5.21 (default ignorable code points) and 23 (special
areas and format characters); UAX #11 (East Asian width); ECMA-48 for what the controls would do.
"""

from typing import Final

__all__ = ["escaped", "width"]

_MAX_MARKS: Final = 2
"""Marks shown on one letter: Thai and Vietnamese need two, more only grow into other lines."""

# Not controls, and yet nothing to see: fillers, joiners and variation selectors. Two names that
# differ in them look alike, and terminals disagree about their width.
_UNSEEN: Final = (
    (0x034F, 0x034F),  # combining grapheme joiner
    (0x115F, 0x11FF),  # Hangul fillers, and jamo that melt into the letter before
    (0x17B4, 0x17B5),  # Khmer inherent vowels
    (0x180B, 0x180F),  # Mongolian variation selectors
    (0x2800, 0x2800),  # Braille blank
    (0x3164, 0x3164),  # Hangul filler
    (0xD7B0, 0xD7FF),  # Hangul jamo, extended
    (0xFE00, 0xFE0F),  # variation selectors
    (0xFFA0, 0xFFA0),  # halfwidth Hangul filler
    (0xE0100, 0xE01EF),  # variation selectors, supplement
)


def escaped(text: str) -> str:
    r"""This writes what cannot be seen, or would act on the terminal, as ``\xNN`` or ``\uNNNN``.

    Controls, format characters such as those that turn the writing direction, spaces other than
    the usual one, unassigned and private characters are escaped; letters of any script are not. A
    backslash stays as it is: bytes that were no UTF-8 have been written with one before.

    Returns:
        One line of printable text; the same when it is escaped again.
    """
    if text.isascii() and text.isprintable():
        return text
    shown: list[str] = []
    room_for_marks = 0
    for character in text:
        if _is_mark(character):
            visible = room_for_marks > 0
            room_for_marks -= 1
        else:
            visible = character.isprintable() and not _is_unseen(character)
            room_for_marks = _MAX_MARKS if visible and character.isalpha() else 0
        shown.append(character if visible else _code(character))
    return "".join(shown)


def width(text: str) -> int:
    """This is the number of terminal columns that escaped text takes."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _code(character: str) -> str:
    number = ord(character)
    if number < 1 << 8:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 1 << 16 else f"\\U{number:08x}"


def _is_unseen(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _UNSEEN)


def _is_mark(character: str) -> bool:
    """This tells whether a character is drawn onto the one before it."""
    if character.isascii() or _is_unseen(character):
        return False
    # Most output is ASCII and never needs the character database.
    from unicodedata import category

    return category(character) in {"Mn", "Me"}


def _columns(character: str) -> int:
    if character.isascii():
        return 1
    from unicodedata import east_asian_width

    if _is_mark(character):
        return 0
    return 2 if east_asian_width(character) in {"W", "F"} else 1
