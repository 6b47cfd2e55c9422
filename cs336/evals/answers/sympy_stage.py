"""The second stage: two answers are equal if SymPy can simplify their difference to zero, element by element.

Source    what the course's reward does (alignment handout, `r1_zero_reward_fn`), written from a description of its
          behaviour.
Limits    SymPy evaluates what it reads, so a short text can take for ever: `_is_harmless` turns away most, and
          `cs336.evals.watchdog` ends the others.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import lru_cache

import sympy
from pylatexenc.latex2text import LatexNodes2Text
from pylatexenc.latexwalker import get_default_latex_context_db
from sympy.parsing.sympy_parser import implicit_multiplication_application, parse_expr, standard_transformations

_POWERS_OF_TEN = {"million": "*10^6", "billion": "*10^9", "trillion": "*10^12"}
_SYMBOLS = str.maketrans({"√": "sqrt", "π": "pi", "∞": "inf", "∪": "U", "·": "*", "×": "*"})
_BRACKETS = "()[]"
_INTEGER_TOLERANCE = 1e-7
_CLEARLY = 1e-6  # far above the error of arithmetic in double precision

_UNITS = re.compile(
    r"(?:degree|centimeter|cm|meter|mile|second|minute|hour|day|week|month|year|foot|feet|inch|yard)"
    r"(?:es)?s? *(?:\^[0-9]+)?"
)
_WHOLE_TEXT = re.compile(r"\\text\{(.+)\}")
_DEGREES = re.compile(r"\^ *\\circ")
_TYPESET_COMMA = re.compile(r",\\! *")
_MIXED_NUMBER = re.compile(r"([0-9]) +([0-9])")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_PLAIN_FRACTION = re.compile(r"-?[0-9]+/0*[1-9][0-9]*")
_PLAIN_NUMBER = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")
_TOWER_OR_LARGE_EXPONENT = re.compile(r"\^(?:[{(]|[0-9]+\^|[0-9]{2})")

_LATEX_TO_TEXT = LatexNodes2Text()
_LATEX_MACROS = get_default_latex_context_db()  # made anew for each text, if not given
_TRANSFORMATIONS = (*standard_transformations, implicit_multiplication_application)
# What a name in an answer may stand for; `parse_expr` would collect them anew for each text, and Python's own beside.
_NAMES = {name: getattr(sympy, name) for name in sympy.__all__} | {"max": sympy.Max, "min": sympy.Min}


def sympy_equal(answer: str, gold: str) -> bool:
    """Whether both texts have the same normal form, or elements that are equal in value. Neither is boxed.

    Raises:
        Exception: whatever pylatexenc or SymPy raises on text that is no mathematics.
    """
    ours, theirs = normal_form(answer), normal_form(gold)
    if ours == theirs:
        return True
    if not ours or not theirs:
        return False
    elements, wanted = _elements(ours), _elements(theirs)
    if len(wanted) > 1 and (ours[0], ours[-1]) != (theirs[0], theirs[-1]):
        return False  # an open interval is no closed one
    return len(elements) == len(wanted) and all(map(_elements_equal, elements, wanted))


@lru_cache(maxsize=4096)  # a gold answer meets many answers, and most answers come again
def normal_form(text: str) -> str:
    """Lower-case text without blanks, braces, units and currency; LaTeX as SymPy writes it, integers as `str(int)`."""
    if whole := _WHOLE_TEXT.fullmatch(text):
        text = whole[1]
    text = text.replace("\\%", "").replace("\\$", "").replace("%", "").replace("$", "")
    text = text.replace(" or ", " , ").replace(" and ", " , ")
    for word, power in _POWERS_OF_TEN.items():
        text = text.replace(word, power)
    text = _DEGREES.sub("", _UNITS.sub("", text))
    text = _TYPESET_COMMA.sub("", text)
    if "\\" in text:
        text = _latex_to_text(text)
    text = _MIXED_NUMBER.sub(r"\1+\2", text)
    text = text.replace(" ", "").replace("{", "").replace("}", "").lower()
    return _as_integer(_without_thousands_commas(text)) or text


def _latex_to_text(latex: str) -> str:
    # The blank keeps the parts of `7\frac34` apart.
    latex = latex.replace("\\tfrac", "\\frac").replace("\\dfrac", "\\frac").replace("\\frac", " \\frac")
    return _LATEX_TO_TEXT.latex_to_text(latex, latex_context=_LATEX_MACROS).translate(_SYMBOLS)


def _as_integer(text: str) -> str | None:
    """`str(int)` of a number whose value is integral, however it is written ("3.0", "1e3", "007"); None of others."""
    if "_" in text:  # Python reads "110_2" as 1102; here it is a number in base 2
        return None
    try:
        return str(int(text))
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        return None
    return str(round(value)) if math.isfinite(value) and abs(value - round(value)) <= _INTEGER_TOLERANCE else None


def _without_thousands_commas(text: str) -> str:
    return _THOUSANDS.sub("", text)


def _elements(form: str) -> list[str]:
    """The parts of a tuple or interval; the text itself, if it is neither."""
    form = _without_thousands_commas(form)
    inner = form[1:-1]
    if inner and form[0] in _BRACKETS and form[-1] in _BRACKETS and not set(inner) & set(_BRACKETS):
        return inner.split(",")
    return [form]


def _elements_equal(ours: str, theirs: str) -> bool:
    if _PLAIN_FRACTION.fullmatch(ours) and _PLAIN_FRACTION.fullmatch(theirs):
        return ours == theirs  # a fraction has to be reduced, if the right one is
    if (_as_integer(ours) is None) != (_as_integer(theirs) is None):
        return False
    if _PLAIN_NUMBER.fullmatch(ours) and _PLAIN_NUMBER.fullmatch(theirs) and max(len(ours), len(theirs)) <= 15:
        return Fraction(ours) == Fraction(theirs)  # as SymPy would say of so few digits, in a thousandth of the time
    difference = f"({theirs})-({ours})"
    return _is_harmless(difference) and _is_zero(difference)


def _is_harmless(expression: str) -> bool:
    """Whether the expression is small enough to be evaluated: few unknowns, no tower of powers, no large exponent."""
    letters = {letter for letter in expression.replace("sqrt", "").replace("frac", "") if letter.isalpha()}
    return len(letters) <= 2 and not _TOWER_OR_LARGE_EXPONENT.search(expression)


def _is_zero(expression: str) -> bool:
    value = parse_expr(expression.replace("^", "**"), transformations=_TRANSFORMATIONS, global_dict=dict(_NAMES))
    return not _is_clearly_not_zero(value) and bool(sympy.simplify(value) == 0)


def _is_clearly_not_zero(value: object) -> bool:
    """Whether the value at one point says so: what is not zero there never simplifies to zero.

    Most wrong answers end here, in a fraction of the time that simplifying takes.
    The point is positive, where roots and logarithms hide no sign, and exact, so that `evalf` sees what cancels.
    """
    if not isinstance(value, sympy.Expr):
        return False
    unknowns = sorted(value.free_symbols, key=str)
    point = {unknown: sympy.Rational(17 + 4 * place, 13) for place, unknown in enumerate(unknowns)}
    try:
        there = complex(value.evalf(subs=point))
    except (TypeError, ValueError, ArithmeticError):  # no number, such as a limit or an infinity
        return False
    return math.isfinite(abs(there)) and abs(there) > _CLEARLY
