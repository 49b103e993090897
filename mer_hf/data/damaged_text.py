"""Text of which the quotes, dashes and accents were damaged on the way: see `repair`."""

import codecs
import re


def _windows(byte: int) -> str:
    """A byte as Windows-1252 has it; its five undefined bytes stay control characters."""
    return bytes([byte]).decode("cp1252", errors="ignore") or chr(byte)


_BYTE_OF = {char: byte for byte in range(0x80, 0x100) for char in (chr(byte), _windows(byte))}
_TAIL = "[" + "".join(re.escape(char) for char, byte in _BYTE_OF.items() if byte < 0xC0) + "]"
_TWICE_ENCODED = re.compile(rf"[\xc2-\xdf]{_TAIL}|[\xe0-\xef]{_TAIL}{{2}}|[\xf0-\xf4]{_TAIL}{{3}}")
_LOST_APOSTROPHE = re.compile(r"(?<=[A-Za-z])\?(?=(?:s|t|d|m|ve|re|ll)\b)")
DOUBTFUL = re.compile(r"[\x80-\x9f\ufffd\udc80-\udcff]|(?<=[A-Za-z])\?(?=[a-z])")
"""What looks damaged even after `repair`."""


def decode(data: bytes) -> str:
    """The text of a table: UTF-8, with or without a byte-order mark; bytes that are not are Windows-1252's."""
    text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda found: _windows(ord(found[0]) - 0xDC00), text)


def repair(text: str) -> str:
    """Undo what happened to quotes, dashes and accents in the files that circulate.

    UTF-8 read as Windows-1252 or Latin-1, once or more (`itâ€™s`); Windows-1252 read as Latin-1, whose quotes are
    then control characters (`it\\x92s`, as first published); an apostrophe that became a question mark before an
    English ending (`it?s`). Anything else stays as it is; `DOUBTFUL` finds what looks damaged still.
    """
    while (once_less := _TWICE_ENCODED.sub(_encoded_once, text)) != text:
        text = once_less
    text = re.sub("[\x80-\x9f]", lambda found: _windows(ord(found[0])), text)
    return _LOST_APOSTROPHE.sub("’", text)


def _encoded_once(found: re.Match) -> str:
    try:
        char = bytes(_BYTE_OF[char] for char in found[0]).decode("utf-8")
    except UnicodeDecodeError:
        return found[0]
    return char if char < "\u2200" else found[0]  # letters, quotes, dashes; beyond them chance has made a character
