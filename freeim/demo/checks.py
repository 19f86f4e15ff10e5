"""What a page may send, and the refusal of everything else."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

NAME_LENGTH: Final = 24
ROOM_LENGTH: Final = 32
TEXT_LENGTH: Final = 2000
FILE_NAME_LENGTH: Final = 200
LARGEST_UPLOAD: Final = 10 * 1024 * 1024
"""The largest file that is taken where the command line says nothing else, in bytes."""
LARGEST_ID: Final = 2**53 - 1
"""The largest client id that a number of JavaScript holds exactly."""

# Controls, halves of characters, line and paragraph separators; and what turns the direction of the text around it,
# with which "exe.gpj" reads as a picture.
_FORBIDDEN: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
_TURNING: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# What shows nothing is no name: categories (of marks, spaces, zero-width characters), and letters that are blank.
_UNSEEN: Final = frozenset({"Mn", "Me", "Mc", "Zs", "Cf"})
_BLANK: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0")
_KEY: Final = re.compile(r"[A-Za-z0-9_-]{8,64}")


class Refused(Exception):
    """The request is not carried out.

    Args:
        status: The HTTP status.
        reason: A word for programs.
        sentence: What is wrong, for people.
    """

    def __init__(self, status: int, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.reason = reason
        self.sentence = sentence


def name(value: object) -> str:
    """Return a nickname without white space around it."""
    return _line(value, "name", "a nickname", NAME_LENGTH)


def room(value: object) -> str:
    """Return the name of a room: letters, digits, and ``- _ .`` and single spaces between them."""
    text = _line(value, "room", "the name of a room", ROOM_LENGTH)
    if not all(each.isalnum() or unicodedata.category(each)[0] == "M" or each in "-_. " for each in text):
        raise Refused(400, "room", "the name of a room holds letters, digits, spaces, and the characters - _ .")
    return " ".join(text.split())


def text(value: object) -> str:
    """Return the text of a message, which may have several lines."""
    found = _string(value, "text", "a message").strip()
    if not found:
        raise Refused(400, "text", "the message is empty")
    if len(found) > TEXT_LENGTH:
        raise Refused(400, "text", f"a message has at most {TEXT_LENGTH} characters")
    if any(unicodedata.category(each) in _FORBIDDEN and each not in "\n\t" for each in found):
        raise Refused(400, "text", "the message holds a control character")
    return found


def file_name(value: object) -> str:
    """Return the name of a file: a name alone, without any folder."""
    found = _line(value, "file-name", "the name of a file", FILE_NAME_LENGTH)
    if found in (".", "..") or "/" in found or "\\" in found:
        raise Refused(400, "file-name", "the name of a file must not hold a folder")
    return found


def client_id(value: object) -> int:
    """Return a client id, given as a number or in digits."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,16}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= LARGEST_ID:
        raise Refused(400, "client", f"a client id is a whole number from 1 to {LARGEST_ID}")
    return value


def key(value: object) -> str:
    """Return the key by which a page knows its message again, when it comes back or when its receipt comes."""
    if not isinstance(value, str) or not _KEY.fullmatch(value):
        raise Refused(400, "key", "a key has 8 to 64 letters, digits, - or _")
    return value


def _string(value: object, reason: str, what: str) -> str:
    if not isinstance(value, str):
        raise Refused(400, reason, f"{what} must be given, as text")
    return value


def _line(value: object, reason: str, what: str, longest: int) -> str:
    found = _string(value, reason, what).strip()
    if not 0 < len(found) <= longest:
        raise Refused(400, reason, f"{what} has 1 to {longest} characters")
    if any(unicodedata.category(each) in _FORBIDDEN or each in _TURNING for each in found):
        raise Refused(400, reason, f"{what} must not hold control characters")
    if all(unicodedata.category(each) in _UNSEEN or each in _BLANK for each in found):
        raise Refused(400, reason, f"{what} must show something")
    return found
