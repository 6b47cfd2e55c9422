"""The compiled scan for digits against the patterns that it stands for."""

import re
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cs336.files import read_jsonl
from cs336.filters.pii import mask_emails, mask_ips, mask_phone_numbers, mask_pii
from cs336.filters.pii_hints import IP_SHAPE, PHONE_SHAPE, number_hints

PIECES = [*"1120.-. \u00a0\u2010\u2011\u2012\u2013\u2014x/\n+()@\u00a1٣\ud800"]
PIECES += ["12", "123", "1234", "1.2.", "555-1234", "a@b.de"]


def assert_equal(text: str) -> None:
    assert number_hints(text) == (bool(re.search(IP_SHAPE, text)), bool(re.search(PHONE_SHAPE, text)))


@settings(max_examples=3_000, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
@example("1.1.1.1")
@example("1.1..1.1")
@example("1.1.1.")
@example("123\u00a04567")
@example("123--4567")
@example("\u00c2")
@example("1\u2013")
def test_finds_what_the_patterns_find(text: str):
    assert_equal(text)


@settings(max_examples=1_000, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
def test_masking_with_hints_is_masking_without(text: str):
    masked, emails = mask_emails(text)
    masked, ips = mask_ips(masked)
    masked, phones = mask_phone_numbers(masked)
    assert mask_pii(text) == (masked, (emails, ips, phones))


def test_labelled_texts_give_the_patterns_hints(shared_data: Path):
    rows = list(read_jsonl(shared_data / "labelled" / "pii" / "dev" / "presidio_synth_dataset_v2.jsonl.gz"))
    for row in rows:
        assert_equal(row["full_text"])
    assert {number_hints(row["full_text"]) for row in rows} >= {(False, False), (True, False), (False, True)}
