"""Answers that differ in their writing alone have one form; one test for each habit that the description names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cs336.evals.answers.mathd import mathd_equal, mathd_form


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("  7 ", "7"),
        (r"\text{odd}", "odd"),
        (r" \text{ odd } ", "odd"),
        ("1\n2", "12"),
        (r"10\!000", "10000"),
        (r"\left(1\right)", "(1)"),
        (r"\begin{bmatrix}1\\2\end{bmatrix}", r"\begin{pmatrix}1\2\end{pmatrix}"),
        (r"\begin{array}{cc}1\\2\end{array}", r"\begin{pmatrix}1\2\end{pmatrix}"),
        (r"\tfrac{1}{2}", r"\frac{1}{2}"),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"\leq\neq\geq", r"\le\ne\ge"),
        (r"15\text{ cm}", "15"),
        (r"\text{x}\text{y}", r"\text{x}"),
        (r"\! \text{y}", r"\text{y}"),  # nothing else would be left
        ("10 cm", "10"),
        ("10 apples", "10"),
        ("3 sq. cm", "3"),
        ("5 m m", "5"),  # the blank between is part of both: one pass takes the first alone
        ("cm", "cm"),  # never empty
        ("10cm", "10cm"),  # no character between
        ("90^\\circ", "90"),
        ("90^{\\circ}", "90"),
        (r"\$5", "5"),
        (r"5\%", "5"),
        (".25", "0.25"),
        ("{.25}", "{0.25}"),
        ("1, .25", "1,0.25"),
        ("x=5", "5"),
        ("x = 5", "5"),
        ("xy=5", "5"),
        ("xyz=5", "xyz=5"),
        ("x=y=5", "x=y=5"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"\sqrt 3", r"\sqrt{3}"),
        (r"2\sqrt3+1", r"2\sqrt{3}+1"),
        (r"\sqrt[3]{x}", r"\sqrt[3]{x}"),
        ("1 + 2", "1+2"),
        (r"\frac12", r"\frac{1}{2}"),
        (r"\frac1{72}", r"\frac{1}{72}"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        ("0.5", r"\frac{1}{2}"),
        (".5", r"\frac{1}{2}"),
        ("0.50", "0.50"),  # exactly 0.5
        ("3/4", r"\frac{3}{4}"),
        ("-3/4", r"\frac{-3}{4}"),
        ("x/4", "x/4"),
        ("", ""),
    ],
)
def test_each_habit_of_writing_by_hand(text, form):
    assert mathd_form(text) == form


@pytest.mark.parametrize("unit", ["mph", "hours", "degrees", "sq cm", "square feet", "gm", "p.m.", "men", "rupees"])
def test_units_beside_a_number_do_not_count(unit):
    assert mathd_equal(f"12 {unit}", "12")


def test_amounts_of_money_differ_by_their_unit():
    assert not mathd_equal("5 dollars", "5 cents")


def test_letters_that_are_units_make_the_known_false_accept():
    assert mathd_equal("(a)", "(c)")
    assert not mathd_equal("(A)", "(C)")
    assert not mathd_equal("a", "c")  # nothing would be left


@given(st.text(alphabet="ab1.,/=\\{}^$% \ncmsqrtfrac", max_size=30))
def test_any_text_has_a_form_without_blanks(text):
    assert " " not in mathd_form(text)
    assert mathd_equal(text, f" {text} ")
