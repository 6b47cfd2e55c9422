"""Format and answer rewards of whole responses, and gradings that never end."""

import functools
import re

import pytest

from cs336.evals.rewards import WatchedReward, question_only_reward_fn, r1_zero_reward_fn

NOTHING = {"format_reward": 0.0, "answer_reward": 0.0, "reward": 0.0}
FORMAT = {"format_reward": 1.0, "answer_reward": 0.0, "reward": 0.0}  # format alone earns nothing
RIGHT = {"format_reward": 1.0, "answer_reward": 1.0, "reward": 1.0}
THOUGHT = "First, ... </think> <answer>"


@pytest.mark.parametrize(
    ("response", "rewards"),
    [
        (f"{THOUGHT} 5 </answer>", RIGHT),
        (f"{THOUGHT}5</answer>", RIGHT),
        (f"{THOUGHT} 6 </answer>", FORMAT),
        (f"{THOUGHT} so it is \\boxed{{5}} in all </answer>", RIGHT),
        (f"{THOUGHT} \\boxed{{5}} or \\boxed{{6}} </answer>", FORMAT),  # the last box
        (f"{THOUGHT} 5, so \\boxed 5 </answer>", FORMAT),  # a box that cannot be read
        (f"{THOUGHT} \\boxed{{5}} or \\boxed{{5 </answer>", FORMAT),
        (f"{THOUGHT} 6 </answer> no: <answer> 5 </answer>", RIGHT),  # after the last <answer>
        (f"{THOUGHT} </answer> 5 </answer>", RIGHT),  # every </answer> is removed
        (f"{THOUGHT} </answer>", FORMAT),
        ("First, ... </think>\n<answer> 5 </answer>", NOTHING),
        ("First, ... </think><answer> 5 </answer>", NOTHING),
        ("First, ... </think>  <answer> 5 </answer>", NOTHING),
        (f"{THOUGHT} 5", NOTHING),  # cut off
        ("5", NOTHING),
        ("\\boxed{5}", NOTHING),
        ("", NOTHING),
    ],
)
def test_r1_zero_rewards_by_hand(response, rewards):
    assert r1_zero_reward_fn(response, "5") == rewards


@pytest.mark.parametrize(
    ("response", "rewards"),
    [
        ("so \\boxed{5}", RIGHT),
        ("so \\boxed{6}", FORMAT),
        ("\\boxed{5} or \\boxed{6}", FORMAT),
        ("\\boxed{}", FORMAT),
        ("\\fbox{5}", NOTHING),
        ("\\boxed 5", NOTHING),
        ("\\boxed{5} or \\boxed{5", NOTHING),
        ("5", NOTHING),
        (f"{THOUGHT} 5 </answer>", NOTHING),
    ],
)
def test_question_only_rewards_by_hand(response, rewards):
    assert question_only_reward_fn(response, "5") == rewards


@pytest.mark.parametrize("reward_fn", [r1_zero_reward_fn, question_only_reward_fn])
@pytest.mark.parametrize(
    ("gold", "rewards"),
    [("5", RIGHT), (5, RIGHT), (5.0, RIGHT), (["6", "5"], RIGHT), ([6, 5.0], RIGHT), (["6"], FORMAT), ([], FORMAT)],
)
def test_ground_truths_are_texts_numbers_or_several(reward_fn, gold, rewards):
    response = f"{THOUGHT} \\boxed{{5}} </answer>"
    actual = reward_fn(response, gold)
    assert actual == rewards
    assert all(type(value) is float for value in actual.values())


@pytest.mark.parametrize("reward_fn", [r1_zero_reward_fn, question_only_reward_fn])
def test_the_third_argument_asks_math_verify_too(reward_fn):
    response = f"{THOUGHT} \\boxed{{2/4}} </answer>"
    assert reward_fn(response, "1/2") == reward_fn(response, "1/2", fast=True) == FORMAT
    assert reward_fn(response, "1/2", False) == reward_fn(response, "1/2", fast=False) == RIGHT


@pytest.mark.parametrize("endless", ["9**9**9**9", "9999999999!"])
def test_a_grading_that_never_ends_scores_nothing_and_says_why(endless):
    """Both get through the grader's own guards."""
    answers = ["5", endless, "6", "5"]
    responses = [f"{THOUGHT} {answer} </answer>" for answer in answers]
    with WatchedReward(r1_zero_reward_fn, seconds=2.0) as reward_fn:
        scored = reward_fn.score(responses, ["5", "\\pi", "5", 5])
        assert reward_fn(responses[0], "5") == RIGHT
    assert scored[0] == scored[3] == RIGHT
    assert scored[2] == FORMAT
    assert scored[1].pop("lost") in ("over 2 s", "over 1,073,741,824 bytes of memory")
    assert scored[1] == NOTHING


def test_watched_rewards_are_those_of_the_function_itself():
    reward_fn = functools.partial(r1_zero_reward_fn, fast=False)
    responses = [f"{THOUGHT} {number}/4 </answer>" for number in range(1, 9)]
    golds = ["1/4", "1/2", "3/4", "1", ["5", "5/4"], "6", 7, 2.0]
    with WatchedReward(reward_fn, num_workers=2) as watched:
        assert watched.score(responses, golds) == list(map(reward_fn, responses, golds))
        with pytest.raises(ValueError, match="zip"):
            watched.score(responses, golds[:2])


def _misspelt(response, ground_truth):
    return {"format_reward": float(len(respons))}  # noqa: F821


def _a_number(response, ground_truth):
    return 1.0


def _incomplete(response, ground_truth):
    return {"format_reward": 1.0, "reward": 1.0}


@pytest.mark.parametrize(
    ("reward_fn", "last_line"),
    [
        (_misspelt, "reward function _misspelt: NameError: name 'respons' is not defined"),
        (_a_number, "reward function _a_number returned 1.0; give format_reward, answer_reward and reward"),
        (_incomplete, "reward function _incomplete returned .*; give format_reward, answer_reward and reward"),
    ],
)
def test_an_error_names_the_reward(reward_fn, last_line):
    with WatchedReward(reward_fn) as watched, pytest.raises(RuntimeError) as caught:
        watched.score(["x"], ["y"])
    assert re.search(last_line, str(caught.value).strip().splitlines()[-1])
