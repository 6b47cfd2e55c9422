"""Problems of arithmetic in words, and the steps that solve them: five kinds, any number of steps.

sums    an expression to work out
story   one person's things grow fewer and more: a running quantity
chain   who has how many more, fewer or times as many than whom: quantities that hang on one another,
        some of which nobody asks for
shop    prices, numbers of things, and the change
work    so much an hour, on several days

All numbers are whole and from 2 up. No multiplication or division has two operands above 9, so every
step can be worked out digit by digit with one carry.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

_NAMES = (
    "Ada Ben Cleo Dan Ella Finn Gina Hugo Ines Jack Kira Leo Mia Noah Olga Paul Rosa Sam Tara Umar Vera Will Yara Zoe"
)
_THINGS = (
    "apples shells stamps coins marbles cards beads stickers nuts buttons plums pebbles feathers tickets badges keys"
)
_GOODS = "pen book lamp cup hat ball rope bowl ladle kite vase drum plate shirt chair flute"
_BAGS = "bags boxes jars tins"
_MACHINES = "machine printer mill press robot kiln"
_PRODUCTS = "parts rolls bricks labels plates tiles pies bolts"
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
_LARGEST_FACTOR = 9  # of the smaller factor and of every divisor


class Unsuitable(Exception):
    """The numbers drawn make no problem of the wanted kind; draw again."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """How hard a problem is.

    Attributes:
        num_steps: operations of its solution, 1 to 8.
        max_value: no number, given or worked out, is larger.
        num_distractors: facts that the answer does not need, in problems of the kind "chain"; at most 8.
        shuffled: facts stand in any order, in problems of the kind "chain".
    """

    num_steps: int
    max_value: int
    num_distractors: int = 0
    shuffled: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps <= 8 or not 0 <= self.num_distractors <= 8:
            raise ValueError(f"{self}: give 1 to 8 steps (a week has seven days) and at most 8 distractors")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operation of a solution.

    Attributes:
        label: what it works out, in a word, such as "Mia" or "total"; empty where nothing has a name.
        left, right: the operands.
        operator: "+", "-", "*" or "/".
        result: what it gives.
        left_step, right_step: numbers of the earlier steps that gave the operands; None for a given number.
        sentence: the step in words, with `{}` where the calculation stands.
    """

    label: str
    left: int
    operator: str
    right: int
    result: int
    left_step: int | None
    right_step: int | None
    sentence: str


@dataclass(frozen=True)
class _Quantity:
    """A number and the step that gave it; None: the question."""

    value: int
    step: int | None = None


def calculate(left: int, operator: str, right: int) -> int:
    """The result of one operation on whole numbers.

    Raises:
        Unsuitable: it is negative or not whole.
    """
    if operator == "/":
        if right == 0 or left % right:
            raise Unsuitable
        return left // right
    result = {"+": left + right, "-": left - right, "*": left * right}[operator]
    if result < 0:
        raise Unsuitable
    return result


class _Draft:
    """A problem being made."""

    def __init__(self, rng: random.Random, level: Level):
        self.rng = rng
        self.level = level
        self.steps: list[Step] = []

    def pick(self, words: str) -> str:
        return self.rng.choice(words.split())

    def several(self, words: str, count: int) -> list[str]:
        return self.rng.sample(words.split(), count)

    def number(self, low: int, high: int) -> int:
        """A number between the two, all lengths in digits equally likely: most must not be as long as can be."""
        high = min(high, self.level.max_value)
        if high < low:
            raise Unsuitable
        num_digits = self.rng.randint(len(str(low)), len(str(high)))
        return self.rng.randint(max(low, 10 ** (num_digits - 1)), min(high, 10**num_digits - 1))

    def apply(self, label: str, left: _Quantity, operator: str, right: _Quantity, sentence: str) -> _Quantity:
        """Add a step; its result."""
        result = calculate(left.value, operator, right.value)
        factors = {"*": min(left.value, right.value), "/": right.value}
        if not 2 <= result <= self.level.max_value or factors.get(operator, 0) > _LARGEST_FACTOR:
            raise Unsuitable
        self.steps.append(
            Step(
                label=label,
                left=left.value,
                operator=operator,
                right=right.value,
                result=result,
                left_step=left.step,
                right_step=right.step,
                sentence=sentence,
            )
        )
        return _Quantity(result, len(self.steps) - 1)

    def operand(self, operator: str, left: int) -> int:
        """A number that can come second after `left`."""
        limit = self.level.max_value
        if operator == "+":
            return self.number(2, limit - left)
        if operator == "-":
            return self.number(2, left - 2)
        if operator == "*":
            return self.number(2, min(_LARGEST_FACTOR, limit // left))
        divisors = [divisor for divisor in range(2, _LARGEST_FACTOR + 1) if not left % divisor and left > divisor]
        if not divisors:
            raise Unsuitable
        return self.rng.choice(divisors)


def _sums(draft: _Draft) -> str:
    value = _Quantity(draft.number(2, draft.level.max_value))
    text = str(value.value)
    for _ in range(draft.level.num_steps):
        operator = draft.rng.choice("++--*/")
        bare = text.isdigit() or (operator in "+-" and "(" not in text)
        inner = text if bare else f"({text})"
        if operator in "+-" and value.step is not None and draft.rng.random() < 0.3:
            number = _Quantity(draft.number(value.value + 2 if operator == "-" else 2, draft.level.max_value))
            inner = text if text.isdigit() else f"({text})"
            text = f"{number.value} {operator} {inner}"
            value = draft.apply("", number, operator, value, "{}.")
        else:
            number = _Quantity(draft.operand(operator, value.value))
            text = f"{inner} {operator} {number.value}"
            value = draft.apply("", value, operator, number, "{}.")
    return draft.rng.choice(["What is {}?", "How much is {}?", "Work out {}."]).format(text)


def _story(draft: _Draft) -> str:
    name, things = draft.pick(_NAMES), draft.pick(_THINGS)
    has = _Quantity(draft.number(2, draft.level.max_value))
    told = [f"{name} has {has.value} {things}."]
    now = f"{name} then has {{}} {things}."
    while (missing := draft.level.num_steps - len(draft.steps)) > 0:
        event = draft.rng.choice(["gain", "gain", "loss", "loss", "times", "share"] + ["packs"] * 2 * (missing > 1))
        if event == "gain":
            number = _Quantity(draft.operand("+", has.value))
            told.append(f"{name} {draft.rng.choice(['finds', 'buys', 'is given'])} {number.value} more {things}.")
            has = draft.apply(name, has, "+", number, now)
        elif event == "loss":
            number = _Quantity(draft.operand("-", has.value))
            told.append(f"{name} {draft.rng.choice(['loses', 'sells', 'gives away'])} {number.value} {things}.")
            has = draft.apply(name, has, "-", number, now)
        elif event == "times":
            number = _Quantity(draft.operand("*", has.value))
            told.append(f"{name} goes on until there are {number.value} times as many {things}.")
            has = draft.apply(name, has, "*", number, now)
        elif event == "share":
            number = _Quantity(draft.operand("/", has.value))
            told.append(f"{name} splits the {things} into {number.value} equal parts and keeps one part.")
            has = draft.apply(name, has, "/", number, now)
        else:
            bags = draft.pick(_BAGS)
            count = _Quantity(draft.number(2, _LARGEST_FACTOR))
            each = _Quantity(draft.number(2, draft.level.max_value // count.value))
            told.append(f"{name} buys {count.value} {bags} with {each.value} {things} in each.")
            new = draft.apply(bags, count, "*", each, f"The {bags} hold {{}} {things}.")
            has = draft.apply(name, has, "+", new, now)
    told.append(f"How many {things} does {name} have in the end?")
    return " ".join(told)


def _chain(draft: _Draft) -> str:
    level, things = draft.level, draft.pick(_THINGS)
    together = level.num_steps > 1 and draft.rng.random() < 0.4
    num_relations = level.num_steps - together
    names = draft.several(_NAMES, 1 + num_relations + level.num_distractors)
    first = _Quantity(draft.number(2, level.max_value))
    told = [f"{names[0]} has {first.value} {things}."]
    owned = [first]
    for name in names[1 : 1 + num_relations]:
        fact, operator, number = _relation(draft, name, names[len(owned) - 1], owned[-1].value, things)
        told.append(fact)
        owned.append(draft.apply(name, owned[-1], operator, _Quantity(number), f"{name} has {{}} {things}."))
    for name in names[1 + num_relations :]:
        place = draft.rng.randrange(len(owned))
        told.append(_relation(draft, name, names[place], owned[place].value, things)[0])
    if level.shuffled:
        draft.rng.shuffle(told)
    if not together:
        return " ".join([*told, f"How many {things} does {names[num_relations]} have?"])
    place = draft.rng.randrange(num_relations)
    draft.apply("together", owned[place], "+", owned[-1], f"Together they have {{}} {things}.")
    return " ".join([*told, f"How many {things} do {names[place]} and {names[num_relations]} have together?"])


def _relation(draft: _Draft, name: str, other: str, value: int, things: str) -> tuple[str, str, int]:
    """What one person has, told by what the other has: the fact, and the operation on the other's number."""
    operator = draft.rng.choice("++--*/")
    number = draft.operand(operator, value)
    facts = {
        "+": f"{name} has {number} more {things} than {other}.",
        "-": f"{name} has {number} fewer {things} than {other}.",
        "*": f"{name} has {number} times as many {things} as {other}.",
        "/": f"{other} has {number} times as many {things} as {name}.",
    }
    return facts[operator], operator, number


def _shop(draft: _Draft) -> str:
    with_change = draft.level.num_steps % 2 == 0
    goods = draft.several(_GOODS, (draft.level.num_steps + 1) // 2)
    name, limit = draft.pick(_NAMES), draft.level.max_value
    prices = [_Quantity(draft.number(2, limit // (2 * len(goods)))) for _ in goods]
    counts = [_Quantity(draft.number(2, _LARGEST_FACTOR)) for _ in goods]
    total = None
    for thing, count, price in zip(goods, counts, prices, strict=True):
        cost = draft.apply(thing, count, "*", price, f"The {thing}s cost {{}} dollars.")
        total = cost if total is None else draft.apply("total", total, "+", cost, "That makes {} dollars.")
    assert total is not None
    costs = _list([f"a {thing} costs ${price.value}" for thing, price in zip(goods, prices, strict=True)])
    buys = _list([f"{count.value} {thing}s" for thing, count in zip(goods, counts, strict=True)])
    told = f"{costs[0].upper()}{costs[1:]}. {name} buys {buys}."
    if not with_change:
        return f"{told} How many dollars does {name} pay?"
    # Paid with a note, or with a sum that leaves something: what is left must be worked out either way.
    notes = [note for note in (20, 50, 100, 200, 500, 1_000, 2_000, 5_000) if total.value + 2 <= note <= limit]
    paid = _Quantity(draft.rng.choice(notes) if notes else draft.number(total.value + 2, limit))
    draft.apply("change", paid, "-", total, f"{name} has {{}} dollars left.")
    return f"{told} {name} had ${paid.value}. How many dollars does {name} have left?"


def _work(draft: _Draft) -> str:
    num_steps, limit = draft.level.num_steps, draft.level.max_value
    with_broken = num_steps == 8 or (num_steps > 1 and draft.rng.random() < 0.5)
    days = _DAYS.split()[: num_steps - with_broken]
    machine, things = draft.pick(_MACHINES), draft.pick(_PRODUCTS)
    hours = [_Quantity(draft.number(2, 12)) for _ in days]
    total = hours[0]
    for more in hours[1:]:
        total = draft.apply("hours", total, "+", more, f"The {machine} runs for {{}} hours.")
    rate = _Quantity(draft.number(2, limit // total.value if total.value <= _LARGEST_FACTOR else _LARGEST_FACTOR))
    made = draft.apply(things, total, "*", rate, f"It makes {{}} {things}.")
    runs = _list([f"{hour.value} hours on {day}" for hour, day in zip(hours, days, strict=True)])
    told = f"A {machine} makes {rate.value} {things} an hour. It runs for {runs}."
    if not with_broken:
        return f"{told} How many {things} does it make?"
    broken = _Quantity(draft.operand("-", made.value))
    draft.apply("good", made, "-", broken, f"Then {{}} {things} are good.")
    return f"{told} {broken.value} of the {things} are broken. How many good {things} are there?"


def _list(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


_KINDS: dict[str, Callable[[_Draft], str]] = {
    "sums": _sums,
    "story": _story,
    "chain": _chain,
    "shop": _shop,
    "work": _work,
}
KINDS = tuple(_KINDS)


def draw_problem(rng: random.Random, kind: str, level: Level) -> tuple[str, tuple[Step, ...]]:
    """A question and the steps that solve it, drawn until the numbers suit.

    Raises:
        ValueError: no such kind, or none was found in a thousand draws.
    """
    if kind not in _KINDS:
        raise ValueError(f"no problems of kind {kind!r}; there are {', '.join(KINDS)}")
    for _ in range(1_000):
        draft = _Draft(rng, level)
        try:
            question = _KINDS[kind](draft)
        except Unsuitable:
            continue
        assert len(draft.steps) == level.num_steps
        return question, tuple(draft.steps)
    raise ValueError(f"no problem of kind {kind!r} fits {level}; raise max_value or lower num_steps")
