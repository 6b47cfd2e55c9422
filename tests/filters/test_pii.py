"""Masking of e-mail addresses, phone numbers and IP addresses."""

import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs336.files import read_jsonl
from cs336.filters.pii import EMAIL, IP, PHONE, PiiCounts, find_pii, mask_emails, mask_ips, mask_phone_numbers, mask_pii


@pytest.mark.parametrize(
    ("text", "expected", "count"),
    [
        ("Write to ann@example.com, please.", f"Write to {EMAIL}, please.", 1),
        ("a@b.org and c.d-e+f@g-h.co.uk!", f"{EMAIL} and {EMAIL}!", 2),
        ("Ask bob@mail.museum.", f"Ask {EMAIL}.", 1),
        ("<'joe@x.io'>", f"<'{EMAIL}'>", 1),
        ("o'brien@x.io", EMAIL, 1),
        ("邮箱zhang@example.com谢谢", f"邮箱{EMAIL}谢谢", 1),
        ("root@localhost, @decorator, a @ b.com, x@1.2.3.4", "root@localhost, @decorator, a @ b.com, x@1.2.3.4", 0),
        ("a@b@c.de", f"a@{EMAIL}", 1),
        (f"{EMAIL} stays", f"{EMAIL} stays", 0),
        ("", "", 0),
    ],
)
def test_emails(text: str, expected: str, count: int):
    assert mask_emails(text) == (expected, count)


@pytest.mark.parametrize(
    "number",
    [
        "2831823829",
        "283-182-3829",
        "283.182.3829",
        "283 182 3829",
        "(283)-182-3829",
        "(283) 182 3829",
        "(283)1823829",
        "(283) 182-3829",
        "+1 283-182-3829",
        "+12831823829",
        "1 (283) 182-3829",
        "1-283-182-3829",
        "1.283.182.3829",
        "+1 (283) 182 3829",
        "(283)182-3829",
        "(283)-182.3829",
        "(283).182 3829",
        "001-283-182-3829",  # how a US number is dialled from abroad
        "283-182-3829x12345",  # with its extension
        "(283)1823829x7",
    ],
)
def test_every_shape_of_a_us_number_is_masked_whole(number: str):
    assert mask_phone_numbers(f"Call {number}, or {number}.") == (f"Call {PHONE}, or {PHONE}.", 2)


@pytest.mark.parametrize(
    "text",
    [
        "12831823829123",
        "x2831823829",
        "2831823829x",
        "2831823829x12",
        "283-182-3829x",
        "283-182-3829x123456",
        "3.1415926535",
        "28-31-82-3829",
        "283182382",
        f"{PHONE}",
    ],
)
def test_these_are_no_phone_numbers(text: str):
    assert mask_phone_numbers(text) == (text, 0)


@pytest.mark.parametrize(
    ("text", "expected", "count"),
    [
        ("Ping 192.0.2.146.", f"Ping {IP}.", 1),
        ("0.0.0.0 255.255.255.255", f"{IP} {IP}", 2),
        ("http://10.0.0.1:80/", f"http://{IP}:80/", 1),
        ("256.1.1.1 and 1.1.1.256 and 1.2.3", "256.1.1.1 and 1.1.1.256 and 1.2.3", 0),
        ("1.2.3.4.5", "1.2.3.4.5", 0),
        ("v1.2.3.4", "v1.2.3.4", 0),
    ],
)
def test_ip_addresses(text: str, expected: str, count: int):
    assert mask_ips(text) == (expected, count)


def test_numbers_glued_by_a_bracket_are_all_masked_at_once():
    assert mask_phone_numbers("(283)1823829(283)1823829+12831823829") == (PHONE * 3, 3)


def test_all_together_are_counted_by_kind():
    text = "ann@x.com at 10.0.0.1, 283-182-3829 or bob@y.org"
    assert mask_pii(text) == (f"{EMAIL} at {IP}, {PHONE} or {EMAIL}", PiiCounts(emails=2, ips=1, phones=1))


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([*"a1@.-+( )|_'", "283", "1823829", "(283)1823829", "b.com", "1.2.3.4"]), max_size=12))
def test_masking_twice_masks_nothing_more(pieces: list[str]):
    once, _ = mask_pii("".join(pieces))
    assert mask_pii(once) == (once, PiiCounts(0, 0, 0))


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([*"a1@.-+( )|_'x", "283", "1823829", "(283)1823829", "b.com", "1.2.3.4"]), max_size=12))
def test_the_places_found_are_those_that_are_masked(pieces: list[str]):
    text = "".join(pieces)
    masked, done = "", 0
    for span in find_pii(text):
        assert span.start >= done
        masked += text[done : span.start] + span.placeholder
        done = span.end
    assert masked + text[done:] == mask_pii(text)[0]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(max_size=200))
def test_any_text_can_be_masked_and_twice_masks_nothing_more(text: str):
    once, _ = mask_pii(text)
    assert mask_pii(once) == (once, PiiCounts(0, 0, 0))


@pytest.mark.parametrize("unit", ["1", "a@", "a.", "1.1.1.1", "(283)1823829", "1 (283) 182-3829x1", "+1", "@a.b-"])
def test_ten_times_the_line_takes_about_ten_times_as_long(unit: str):
    def seconds(num_bytes: int) -> float:
        text = unit * (num_bytes // len(unit))
        start = time.process_time()
        mask_pii(text)
        return time.process_time() - start

    small = min(seconds(1_000_000) for _ in range(3))
    assert seconds(10_000_000) < 30 * small + 0.2  # a quadratic pattern takes 100 times as long


@pytest.mark.parametrize(
    "unit", ["a", "a@", "a.", "@", "1", "1.", "283-", "(283)1823829", "(283)", "a@b.", "-", "1 ", "a@a-", ".a@b", "'@"]
)
def test_the_time_grows_linearly_on_the_worst_lines(unit: str):
    start = time.perf_counter()
    mask_pii(unit * (400_000 // len(unit)))
    assert time.perf_counter() - start < 4  # a quadratic pattern would take minutes


def test_every_labelled_address_is_found(shared_data: Path):
    spans: dict[str, list[bool]] = {"EMAIL_ADDRESS": [], "IP_ADDRESS": []}
    for row in read_jsonl(shared_data / "labelled" / "pii" / "dev" / "presidio_synth_dataset_v2.jsonl.gz"):
        masked, _ = mask_pii(row["full_text"])
        for span in row["spans"]:
            if span["entity_type"] in spans and "." in span["entity_value"]:  # not IPv6
                spans[span["entity_type"]].append(span["entity_value"] not in masked)
    assert len(spans["EMAIL_ADDRESS"]) > 10
    assert all(spans["EMAIL_ADDRESS"])
    assert len(spans["IP_ADDRESS"]) > 10
    assert all(spans["IP_ADDRESS"])


def test_random_numbers_in_the_ten_digit_shapes_leave_no_digit_behind():
    generator = random.Random(0)
    for _ in range(500):
        digits = "".join(generator.choices("0123456789", k=10))
        separators = generator.choices(["-", ".", " ", ""], k=2)
        number = f"{digits[:3]}{separators[0]}{digits[3:6]}{separators[1]}{digits[6:]}"
        assert mask_phone_numbers(f"({number})")[0] == f"({PHONE})", number
