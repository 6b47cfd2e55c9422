"""The first stage: two answers are equal if they are the same text once habits of writing are taken away.

Source    what the course's reward does (alignment handout, `r1_zero_reward_fn`), written from a description of its
          behaviour. The unit words are of the kind described, and chosen by us.
Accepts   any text; what it makes of prose is of no use, but does no harm.
"""

from __future__ import annotations

import re
from functools import lru_cache

# Words beside a number in word problems that do not change it, by what they tell. They are deleted wherever they
# stand alone, so two answers that differ in nothing else count as equal; single letters are among them, so "(a)"
# equals "(c)". "dollar" and "cent" are not: their amounts differ.
_UNITS = {
    "length": "mm cm dm m km mt mtr meter metre ft feet inch inches yard mile",
    "area": "sq square acre hectare",
    "volume": "cc cu cubic cube l liter litre gal gallon",
    "weight": "g gm gram kg kilogram lb pound o oz ounce ton tonne",
    "time": "s sec second min minute h hr hour day week month yr year am pm noon",
    "speed": "mph kmh kmph mps rpm",
    "angle and temperature": "d deg degree c",
    "money": "rs rupee paisa",
    "direction": "east west way",
    "people": "man men woman women soldier child children student",
    "things": "apple coin monkey pie tile toy ticket",
    "count": "a number unit digit mark point prime ratio percent rate time round per by are rd st t th",
    "change": "gain loss profit rise increase decrease excess less more",
    "other": "ohm pure surface",
}
_PHRASES = ("a.m.", "p.m.", "sq.", "cu.", "rs.")


def _deletable_words() -> dict[str, re.Pattern[str]]:
    words = [word for kind in _UNITS.values() for word in kind.split()]
    ordered = dict.fromkeys([*_PHRASES, *words, *(f"{word}s" for word in words)])
    return {word: re.compile(rf"(^|\W){re.escape(word)}($|\W)") for word in ordered}


_WORDS = _deletable_words()
_PLACES = {word: place for place, word in enumerate(_WORDS)}

_WHOLE_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_TEXT_AT_END = re.compile(r"\\text\{[^{}]*\}$")
_ARRAY = re.compile(r"\\begin\{array\}\{[^{}]*\}")
_DEGREES = re.compile(r"\^(?:\\circ|\{\\circ\})")
_BARE_POINT = re.compile(r"(^|[ {])\.")
_SHORT_ROOT = re.compile(r"\\sqrt *([^ {\[])")
_SHORT_FRACTION = re.compile(r"\\frac([^{ ])([^{]?)")
_PLAIN_FRACTION = re.compile(r"([+-]?[0-9]+)/([+-]?[0-9]+)")


def mathd_equal(answer: str, gold: str) -> bool:
    """Whether both texts have the same normal form. Neither is boxed."""
    return mathd_form(answer) == mathd_form(gold)


@lru_cache(maxsize=4096)  # a gold answer meets many answers, and most answers come again
def mathd_form(text: str) -> str:
    """One writing for the many of the same answer, such as `\\frac{1}{2}` for " \\tfrac12 cm".

    Spacing commands, `\\left` and `\\right`, units, degree, dollar and percent signs go, and `x=` before a value;
    kinds of fractions, matrices and comparisons become one.
    """
    text = text.strip()
    if whole := _WHOLE_TEXT.fullmatch(text):
        text = whole[1]
    for written, meant in (("\n", ""), ("\\!", ""), ("\\left", ""), ("\\right", ""), ("\\\\", "\\")):
        text = text.replace(written, meant)
    text = _ARRAY.sub(r"\\begin{pmatrix}", text).replace("\\end{array}", "\\end{pmatrix}")
    text = text.replace("bmatrix", "pmatrix").replace("tfrac", "frac").replace("dfrac", "frac")
    for sign in ("ne", "le", "ge"):
        text = text.replace(f"\\{sign}q", f"\\{sign}")
    text = _TEXT_AT_END.sub("", text).strip() or text
    text = _without_units(text)
    text = _DEGREES.sub("", text).replace("\\$", "").replace("\\%", "")
    text = _BARE_POINT.sub(r"\g<1>0.", text)
    left, equals, right = text.partition("=")
    if equals and len(left) <= 2 and "=" not in right:
        text = right
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text).replace(" ", "")
    text = _SHORT_FRACTION.sub(_with_braces, text)
    if text == "0.5":  # the one decimal that the description names
        return "\\frac{1}{2}"
    return _PLAIN_FRACTION.sub(r"\\frac{\1}{\2}", text) if _PLAIN_FRACTION.fullmatch(text) else text


def _without_units(text: str) -> str:
    """Delete unit words that stand between characters that are no letters, digits or underscores.

    Twice, as a match takes the character on each side with it: of "m m" the first pass takes one.
    """
    words = set(re.findall(r"\w+", text)) & _WORDS.keys()
    words.update(phrase for phrase in _PHRASES if phrase in text)
    # The character on each side stays, so no new word arises: these are all that can be found.
    for word in 2 * sorted(words, key=_PLACES.__getitem__):
        text = _WORDS[word].sub(r"\1\2", text) or text
    return text


def _with_braces(fraction: re.Match[str]) -> str:
    above, below = fraction.groups()
    return f"\\frac{{{above}}}{{{below}}}" if below else f"\\frac{{{above}}}"
