"""Why an answer earned nothing, each reason by a response that is so for it and for no earlier one."""

import pytest

from cs336.evals.rewards import question_only_reward_fn, r1_zero_reward_fn
from cs336.evals.unrewarded import (
    REASONS,
    calculations_of,
    count_reasons,
    ends_in_the_right_answer,
    why_unrewarded,
)


def _row(output, *, answer="40", finish="end", prompt="User: How many?\nAssistant: <think>", **more):
    reward = r1_zero_reward_fn if prompt.endswith("<think>") else question_only_reward_fn
    rewards = reward(output, answer)
    prediction = output.rpartition("<answer>")[2].replace("</answer>", "") if rewards["format_reward"] else None
    asked = {"prompt": prompt, "example": {"answer": answer}, "output": output, "finish": finish}
    return asked | rewards | {"prediction": prediction} | more


def _thought(thought, answer):
    return _row(f" {thought} </think> <answer>{answer}</answer>")


BARE = {"prompt": "How many?"}
CASES = [
    (_row(" </think> <answer>41</answer>", lost="over 5 s"), "its grading was ended"),
    (_row(" \n"), "nothing written"),
    (_row("So we add", finish="length"), "cut off while it thinks"),
    (_row("It is 40."), "ends without `</think>`"),
    (_row("<answer> is 40 </think> 40"), "`</think>`, and no `<answer>`"),
    (_row("20+20=40 </think>\n<answer>40</answer>"), "not one blank between `</think>` and `<answer>`"),
    (_row("20+20=40 </think> <answer>40", finish="length"), "`<answer>` is not closed"),
    (_row("It is", finish="length", **BARE), "cut off before a `\\boxed{}`"),
    (_row("It is 40.", **BARE), "no `\\boxed{}`"),
    (_row("It is \\boxed{40", finish="length", **BARE), "a `\\boxed{}` that cannot be read"),
    (_thought("20+20=40", " "), "an empty answer"),
    (_thought("20+20=40", "the total is 40 apples, I think"), "the right answer among other words"),
    (_row(" </think> <answer>x = \\pi or so</answer>", answer="\\pi"), "the right answer among other words"),
    (_thought("20+20=40", "forty"), "no number where one is right"),
    (_thought("20+20=41. 41-1=40.", "41"), "a calculation is wrong"),
    (_thought("20+20=40.", "41"), "another answer than its calculations end in"),
    (_thought("20+30=50.", "50"), "right calculations for another question"),
    (_thought("20+30: 0+0=0, 2+3=5, so 50.", "50"), "right calculations for another question"),
    (_row("20+30=50, so \\boxed{50}", **BARE), "right calculations for another question"),
    (_thought("Clearly", "50"), "a wrong answer without a calculation"),
    (_row(" </think> <answer>e</answer>", answer="\\pi"), "a wrong answer"),
]


@pytest.mark.parametrize(("row", "reason"), CASES)
def test_each_reason_by_a_response(row, reason):
    assert why_unrewarded(row) == reason


def test_there_is_a_response_for_every_reason():
    assert {reason for _, reason in CASES} == set(REASONS)


def test_reasons_are_counted_in_their_order_and_right_answers_are_none():
    rows = [_thought("", "50"), _row("50"), _thought("20+20=40", "40"), _row("60"), _thought("", "60")]
    assert list(count_reasons(rows).items()) == [
        ("ends without `</think>`", 2),
        ("a wrong answer without a calculation", 2),
    ]


@pytest.mark.parametrize(
    ("output", "answer", "states"),
    [
        ("so it is 40", "40", True),
        ("40 and not 41", "40", False),
        ("it is 1,000.", "1000", True),
        ("nothing", "40", False),
        ("\\frac{1}{2}" + " so" * 20, "\\frac{1}{2}", True),
        ("\\frac{1}{2}" + " so" * 100, "\\frac{1}{2}", False),
        ("it is 7", ["6", "7"], True),
    ],
)
def test_what_a_milder_parser_could_reward(output, answer, states):
    assert ends_in_the_right_answer({"output": output, "example": {"answer": answer}}) == states


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Mia: 34+58: 4+8=12, 3+5+1=9, so 92.", [("4+8=12", True), ("3+5+1=9", True)]),
        ("364*2=738. 738-5=733.", [("364*2=738", False), ("738-5=733", True)]),
        ("73/2: 7/2=3 r 1, 13/2=6 r 1, so 36", [("7/2=3 r 1", True), ("13/2=6 r 1", True)]),
        ("7/2=3 and 7/2=3 r 2 and 8/2=4 and 5/0=0", [("7/2=3", 0), ("7/2=3 r 2", 0), ("8/2=4", 1), ("5/0=0", 0)]),
        ("2+3*4=14 and 20-2*3-1=13", [("2+3*4=14", True), ("20-2*3-1=13", True)]),
        ("3.5+2=5.5, 2x+1=3, 1-2=-1, 1+1=2.5", []),
    ],
)
def test_calculations_with_whole_numbers_are_checked(text, found):
    assert calculations_of(text) == found
