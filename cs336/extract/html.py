"""HTML bytes to text. Light to import: every worker that parses pages does."""

from __future__ import annotations

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import detect_encoding


def extract_text(html: bytes, *, main_content: bool = False) -> str:
    """The visible text of a page, whatever its bytes; equal to resiliparse's, byte for byte.

    Blocks are set apart by blank lines, white space is collapsed, list items start with "  • ",
    links lose their address; no newline at the end.

    Args:
        html: strict UTF-8 is tried first, then the detected encoding with replacement characters.
        main_content: leave out what looks like menus, headers and footers.

    Source: resiliparse 2.0.1, `extract_plain_text` with default options.
    """
    return extract_plain_text(decode_text(html), main_content=main_content)


def decode_text(data: bytes) -> str:
    """Bytes of unknown encoding to text; never raises."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    try:
        return data.decode(detect_encoding(data) or "utf-8", "replace")
    except LookupError:  # a name of the WHATWG's list that Python does not know
        return data.decode("utf-8", "replace")
