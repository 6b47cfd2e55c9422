"""E-mail addresses, US phone numbers and IPv4 addresses, replaced by placeholders.

Every pattern takes time linear in the text, on the worst lines too: e-mail addresses are found from
their at sign outwards, the rest has bounded length. Placeholders hold no at sign, digit or bracket,
so masking twice masks nothing more.
"""

from __future__ import annotations

import re
from typing import NamedTuple

EMAIL = "|||EMAIL_ADDRESS|||"
PHONE = "|||PHONE_NUMBER|||"
IP = "|||IP_ADDRESS|||"


class PiiCounts(NamedTuple):
    """How many of each were masked."""

    emails: int
    ips: int
    phones: int


def mask_pii(text: str) -> tuple[str, PiiCounts]:
    """Mask e-mail addresses, then IP addresses, then phone numbers; also how many of each."""
    text, emails = mask_emails(text)
    text, ips = mask_ips(text)
    text, phones = mask_phone_numbers(text)
    return text, PiiCounts(emails, ips, phones)


# ASCII only: Chinese text puts no space around an address, and must not become part of it.
_LOCAL_CHARACTER = re.compile(r"[A-Za-z0-9._%+'&-]*")
_DOMAIN = re.compile(r"(?:[A-Za-z0-9-]++\.)+[A-Za-z]{2,}(?![A-Za-z0-9])")


def mask_emails(text: str) -> tuple[str, int]:
    """Replace e-mail addresses; returns the text and how many were replaced.

    A domain ends in an alphabetic top-level domain; punctuation after it survives. Addresses with
    other than ASCII letters are not found.
    """
    pieces: list[str] = []
    done = 0
    at = text.find("@")
    while at >= 0:
        start = at - _leading_run(text, done, at)
        domain = _DOMAIN.match(text, at + 1)
        if start < at and domain:
            pieces += (text[done:start], EMAIL)
            done = domain.end()
        at = text.find("@", max(at + 1, done))
    return "".join((*pieces, text[done:])), len(pieces) // 2


def _leading_run(text: str, floor: int, at: int) -> int:
    """Length of the local part that ends before `at` and starts at `floor` or later."""
    start = max(floor, text.rfind("@", floor, at) + 1)
    # Reversed, so that the match is anchored at the at sign; no character is read for two at signs.
    match = _LOCAL_CHARACTER.match(text[start:at][::-1])
    assert match is not None  # it also matches nothing
    return len(match[0].rstrip(".'&-"))  # a quote or dots before the address are not part of it


_OCTET = r"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9]?[0-9])"
_IP = re.compile(rf"(?<![0-9A-Za-z])(?<![0-9]\.){_OCTET}(?:\.{_OCTET}){{3}}(?![0-9A-Za-z])(?!\.[0-9])")
_IP_HINT = re.compile(r"[0-9]\.[0-9]+\.[0-9]+\.[0-9]")


def mask_ips(text: str) -> tuple[str, int]:
    """Replace IPv4 addresses (four octets of 0-255); returns the text and how many were replaced.

    A fifth dotted number, or a letter or digit next to it, means it is something else: a version.
    """
    if not _IP_HINT.search(text):
        return text, 0
    return _IP.subn(IP, text)


_SEPARATOR = "[-. \u00a0\u2010\u2011\u2013]?"
_NUMBER = (
    rf"(?:\+?1{_SEPARATOR})?"
    rf"(?:\([0-9]{{3}}\)|[0-9]{{3}}){_SEPARATOR}[0-9]{{3}}{_SEPARATOR}[0-9]{{4}}"
    r"(?!\w)(?!\.[0-9])"
)
# Numbers glued to one another by a plus or a bracket are taken together: else masking the first
# would free the second for the next time.
_PHONES = re.compile(rf"(?<![\w+])(?<![0-9]\.){_NUMBER}(?:(?=[+(]){_NUMBER})*")
_PHONE = re.compile(_NUMBER)
_PHONE_HINT = re.compile(rf"[0-9]{{3}}{_SEPARATOR}[0-9]{{4}}")


def mask_phone_numbers(text: str) -> tuple[str, int]:
    """Replace US phone numbers; returns the text and how many were replaced.

    Ten digits, bare or as 3-3-4 with hyphens, dots or spaces, the area code in brackets or not, with
    or without +1 or 1. Word characters next to it, or a decimal point with digits, veto it.
    """
    if not _PHONE_HINT.search(text):
        return text, 0
    count = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal count
        numbers = len(_PHONE.findall(match[0]))
        count += numbers
        return PHONE * numbers

    return _PHONES.sub(replace, text), count
