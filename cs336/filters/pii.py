"""E-mail addresses, US phone numbers and IPv4 addresses, replaced by placeholders.

Every pattern takes time linear in the text, on the worst lines too: e-mail addresses are found from
their at sign outwards, the rest has bounded length. Placeholders hold no at sign, digit or bracket,
so masking twice masks nothing more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cs336.filters.pii_hints import SEPARATOR, number_hints

EMAIL = "|||EMAIL_ADDRESS|||"
PHONE = "|||PHONE_NUMBER|||"
IP = "|||IP_ADDRESS|||"


class PiiCounts(NamedTuple):
    """How many of each were masked."""

    emails: int
    ips: int
    phones: int


class PiiSpan(NamedTuple):
    """Where something would be masked: its placeholder, and the characters from `start` to before `end`."""

    placeholder: str
    start: int
    end: int


def mask_pii(text: str) -> tuple[str, PiiCounts]:
    """Mask e-mail addresses, then IP addresses, then phone numbers; also how many of each."""
    hints = number_hints(text)  # placeholders bring no digit, so what is not there now is not there later
    text, emails = mask_emails(text)
    text, ips = mask_ips(text) if hints.ip else (text, 0)
    text, phones = mask_phone_numbers(text) if hints.phone else (text, 0)
    return text, PiiCounts(emails, ips, phones)


def find_pii(text: str) -> list[PiiSpan]:
    """What `mask_pii` masks, in the order of the text, with its places in it."""
    found: list[PiiSpan] = []
    for placeholder, spans_in in ((EMAIL, _email_spans), (IP, _ip_spans), (PHONE, _phone_spans)):
        spans = spans_in(text)
        found += (PiiSpan(placeholder, start, end) for start, end in spans)
        # As placeholders would stand there, for the next kind; of equal length, so that places stay.
        text = "".join(_pieces(text, spans, lambda start, end: "|" * (end - start)))
    return sorted(found, key=lambda span: span.start)


# ASCII only: Chinese text puts no space around an address, and must not become part of it.
_LOCAL_CHARACTER = re.compile(r"[A-Za-z0-9._%+'&-]*")
_DOMAIN = re.compile(r"(?:[A-Za-z0-9-]++\.)+[A-Za-z]{2,}(?![A-Za-z0-9])")


def mask_emails(text: str) -> tuple[str, int]:
    """Replace e-mail addresses; returns the text and how many were replaced.

    A domain ends in an alphabetic top-level domain; punctuation after it survives. Addresses with
    other than ASCII letters are not found.
    """
    return _replace(text, _email_spans(text), EMAIL)


def _email_spans(text: str) -> list[tuple[int, int]]:
    spans = []
    done = 0
    at = text.find("@")
    while at >= 0:
        start = at - _leading_run(text, done, at)
        domain = _DOMAIN.match(text, at + 1)
        if start < at and domain:
            done = domain.end()
            spans.append((start, done))
        at = text.find("@", max(at + 1, done))
    return spans


def _leading_run(text: str, floor: int, at: int) -> int:
    """Length of the local part that ends before `at` and starts at `floor` or later."""
    start = max(floor, text.rfind("@", floor, at) + 1)
    # Reversed, so that the match is anchored at the at sign; no character is read for two at signs.
    match = _LOCAL_CHARACTER.match(text[start:at][::-1])
    assert match is not None  # it also matches nothing
    return len(match[0].rstrip(".'&-"))  # a quote or dots before the address are not part of it


_OCTET = r"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9]?[0-9])"
_IP = re.compile(rf"(?<![0-9A-Za-z])(?<![0-9]\.){_OCTET}(?:\.{_OCTET}){{3}}(?![0-9A-Za-z])(?!\.[0-9])")


def mask_ips(text: str) -> tuple[str, int]:
    """Replace IPv4 addresses (four octets of 0-255); returns the text and how many were replaced.

    A fifth dotted number, or a letter or digit next to it, means it is something else: a version.
    """
    return _replace(text, _ip_spans(text), IP)


def _ip_spans(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in _IP.finditer(text)]


# "x" and an extension, after a number that is written as one; bare digits and an x may be anything.
_EXTENSION = rf"(?:(?:(?<={SEPARATOR}[0-9]{{4}})|(?<=\)[0-9]{{7}}))x[0-9]{{1,5}})?"
_NUMBER = (
    rf"(?:\+?1{SEPARATOR}?|001{SEPARATOR})?"
    rf"(?:\([0-9]{{3}}\)|[0-9]{{3}}){SEPARATOR}?[0-9]{{3}}{SEPARATOR}?[0-9]{{4}}"
    rf"{_EXTENSION}(?!\w)(?!\.[0-9])"
)
# Numbers glued to one another by a plus or a bracket are taken together: else masking the first
# would free the second for the next time.
_PHONES = re.compile(rf"(?<![\w+])(?<![0-9]\.){_NUMBER}(?:(?=[+(]){_NUMBER})*")
_PHONE = re.compile(_NUMBER)


def mask_phone_numbers(text: str) -> tuple[str, int]:
    """Replace US phone numbers; returns the text and how many were replaced.

    Ten digits, bare or as 3-3-4 with hyphens, dots or spaces, the area code in brackets or not, with
    or without +1, 1 or 001-, and with its extension (x123). Word characters next to it, or a decimal
    point with digits, veto it.
    """
    return _replace(text, _phone_spans(text), PHONE)


def _phone_spans(text: str) -> list[tuple[int, int]]:
    return [
        (match.start() + number.start(), match.start() + number.end())
        for match in _PHONES.finditer(text)
        for number in _PHONE.finditer(match[0])
    ]


def _replace(text: str, spans: list[tuple[int, int]], placeholder: str) -> tuple[str, int]:
    return ("".join(_pieces(text, spans, lambda start, end: placeholder)) if spans else text), len(spans)


def _pieces(text: str, spans: list[tuple[int, int]], filler: Callable[[int, int], str]) -> Iterator[str]:
    done = 0
    for start, end in spans:
        yield text[done:start]
        yield filler(start, end)
        done = end
    yield text[done:]
