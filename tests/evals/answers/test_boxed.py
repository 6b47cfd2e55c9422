"""The content of the last box of a text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cs336.evals.answers.boxed import last_boxed


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),  # braces are matched
        (r"\boxed{1} or \boxed{2}", "2"),  # the last counts
        (r"\boxed{}", ""),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{1} and \boxed{2", None),  # the last never closes, and no earlier one takes its place
        (r"\boxed{1} and \boxed 2", None),
        (r"\boxed 5", None),
        (r"\boxed {5}", None),
        (r"\fbox{5}", None),
        ("5", None),
        ("", None),
        (r"\boxed", None),
    ],
)
def test_the_last_box_by_hand(text, content):
    assert last_boxed(text) == content


@given(st.text(alphabet="ab\\ 1"), st.recursive(st.just("1"), lambda inner: inner.map("{{{}}}".format)))
def test_balanced_content_is_returned_whole(before, content):
    assert (
        last_boxed(before + r"\boxed{1" + "}" + before.replace("\\", "") + r"\boxed{" + content + "} after}") == content
    )
