"""Answers of the same value are equal, element by element, and what could take for ever is not evaluated."""

import json
import tokenize

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st
from sympy.parsing.sympy_parser import implicit_multiplication_application, parse_expr, standard_transformations

from cs336.catalog import open_text
from cs336.evals.answers.sympy_stage import _is_harmless, _is_zero, normal_form, sympy_equal


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (r"\text{Odd}", "odd"),
        (r"\text{a~b}", "a~b"),  # which is no LaTeX then, where ~ is a blank
        ("$5$", "5"),
        (r"\$5", "5"),
        ("5%", "5"),
        (r"5\%", "5"),
        (r"5\%x", "5x"),
        ("1 or 2", "1,2"),
        ("1 and 2", "1,2"),
        ("3 million", "3*10^6"),
        ("3 billion", "3*10^9"),
        ("3 trillion", "3*10^12"),
        ("10 cm", "10"),
        ("10 inches^2", "10"),
        ("7 days", "7"),
        (r"90^\circ", "90"),
        (r"90^ \circ", "90"),
        ("{5}", "5"),
        (r"11,\! 111", "11111"),
        (r"1,\!2", "12"),
        ("5.0", "5"),
        ("1e3", "1000"),
        ("007", "7"),
        (str(10**30 + 1), str(10**30 + 1)),  # not by way of a float
        ("110_2", "110_2"),  # a base, not Python's digit separator
        (r"\frac{1}{2}", "1/2"),
        (r"\dfrac{1}{2}", "1/2"),
        (r"7\tfrac{3}{4}", "7+3/4"),
        ("7 3/4", "7+3/4"),
        (r"\sqrt{2}\pi", "sqrt(2)pi"),
        (r"[0,\infty)", "[0,inf)"),
        (r"A\cup B", "aub"),
        (r"2\cdot3\times4", "2*3*4"),
        ("{x} + {Y}", "x+y"),
        ("1,234", "1234"),
        ("1,234,567", "1234567"),
        ("1,23", "1,23"),
        ("nan", "nan"),
        ("inf", "inf"),
        ("", ""),
    ],
)
def test_normal_forms_by_hand(text, form):
    assert normal_form(text) == form


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        ("", "5", False),
        ("", "x", False),
        ("x", "", False),
        ("(1,2)", "(1,2)", True),
        ("(1,0.5)", r"(1,\frac12)", True),
        ("[1,2)", "(1,2)", False),  # the gold's brackets count
        ("(1,2,3)", "(1,2)", False),
        ("(2,1)", "(1,2)", False),
        ("(5)", "5", True),
        ("2/4", "1/2", False),  # not reduced
        ("-1/2", r"-\frac{1}{2}", True),
        ("sqrt(4)", "2", False),  # one is an integer, the other is none as written
        ("2.0000000001", "2", True),
        ("0.250", "0.25", True),
        ("0.25", "0.2500001", False),
        ("1,234.5", "1234.50", True),
        ("x+1", "1+x", True),
        ("(x+1)^2", "x^2+2x+1", True),
        ("x+1", "x+2", False),
        ("2sqrt(2)", "sqrt(8)", True),
        ("x", "y", False),
        ("x+y+z", "z+y+x", False),  # three letters
        ("pi*x", "x*pi", False),  # p, i, x: three letters
        ("1+sqrt(xy)", "sqrt(xy)+1", True),  # whose own letters do not count
        ("x^10", "x^10+0", False),  # an exponent of two digits
        ("x^(2)", "x^2", False),
        ("2^3^1", "2^3^1+0", False),
    ],
)
def test_elements_and_guards_by_hand(answer, gold, equal):
    assert sympy_equal(answer, gold) is equal


@pytest.mark.parametrize(
    ("answer", "gold", "error"),
    [
        ("x+", "x", SyntaxError),
        ("a2)", "b2)", tokenize.TokenError),  # no tuple, but for its end
        ("((1,2),3)", "((1,2),3.0)", TypeError),  # brackets within
    ],
)
def test_text_that_is_no_expression_is_left_to_the_caller(answer, gold, error):
    with pytest.raises(error):
        sympy_equal(answer, gold)


NUMBERS = st.decimals(-(10**6), 10**6, allow_nan=False, places=3).map(str)


@given(NUMBERS, NUMBERS, st.booleans())
def test_plain_numbers_are_compared_as_sympy_would(ours, theirs, same):
    theirs = f"{ours}0" if same and "." in ours else theirs
    if normal_form(ours).lstrip("-").isdigit() == normal_form(theirs).lstrip("-").isdigit():
        assert sympy_equal(ours, theirs) == _simplifies_to_zero(f"({theirs})-({ours})")


def test_a_value_at_one_point_never_says_other_than_simplify(shared_data):
    """On answers of MATH beside each other, which differ, and on (a + b)(a - b) = a a - b b, made of them."""
    lines = open_text(shared_data / "eval/math/test_answers.jsonl.gz")
    forms = [normal_form(json.loads(line)["answer"]) for line in lines]
    forms = [form for form in dict.fromkeys(forms) if any(c.isalpha() for c in form)][:600]
    pairs = list(zip(forms, [*forms[1:], forms[0]], strict=True))
    differences = [f"({a})-({b})" for a, b in pairs]
    differences += [f"(({a})+({b}))*(({a})-({b}))-(({a})*({a})-({b})*({b}))" for a, b in pairs[:200]]
    found = {True: 0, False: 0}
    for difference in filter(_is_harmless, differences):
        try:
            expected = _simplifies_to_zero(difference)
        except Exception:  # no expression
            continue
        assert _is_zero(difference) is expected, difference
        found[expected] += 1
    assert min(found.values()) > 30


def _simplifies_to_zero(difference: str) -> bool:
    transformations = (*standard_transformations, implicit_multiplication_application)
    return bool(sympy.simplify(parse_expr(difference.replace("^", "**"), transformations=transformations)) == 0)
