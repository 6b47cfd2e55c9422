"""Evaluations through a generation backend: what it is asked, and how its samples are read."""

import pytest

from cs336.evals.reasoning import evaluate_reasoning
from cs336.evals.rewards import r1_zero_reward_fn, reward_each
from cs336.evals.sampled import SampledCompletions
from cs336.generate.backend import Generation, Sample, SamplingParams
from tests.posttrain.tokenizers import BOS, Letters, TheirLetters


class _Letters:
    """A token is a character."""

    def encode(self, text):
        return [ord(letter) for letter in text]


class _Echo:
    """Answers every prompt with one text, and keeps what it was asked."""

    def __init__(self, text, finish="stop"):
        self.text, self.finish, self.asked = text, finish, []

    def generate(self, prompts, params, *, numbers=None, progress=None):
        self.asked += [(list(ids), params) for ids in prompts]
        return [Generation(list(ids), [Sample(self.text, [1, 2], None, self.finish)]) for ids in prompts]


def test_a_backend_answers_an_evaluation():
    backend = _Echo("so </think> <answer>7</answer>")
    generate = SampledCompletions(backend, _Letters(), SamplingParams(seed=5, min_tokens=4, n=3))
    questions = [{"question": "3+4?", "answer": "7"}, {"question": "3+5?", "answer": "8"}]
    result = evaluate_reasoning(
        questions, reward=reward_each(r1_zero_reward_fn), generate=generate, name="sums", max_new_tokens=9
    )
    assert result.metrics["accuracy"] == 0.5 and result.metrics["categories"]["(1,1)"]["count"] == 1
    ids, params = backend.asked[0]
    assert "".join(map(chr, ids)) == result.rows[0]["prompt"]
    wanted = (1, 5, 4, 9, ("</answer>",), True, 1.0)
    assert wanted == (
        *(params.n, params.seed, params.min_tokens, params.max_tokens, params.stop),
        *(params.include_stop_str_in_output, params.temperature),
    )


def test_what_a_tokenizer_puts_before_texts_stays_there_also_where_a_prompt_is_cut():
    backend = _Echo("x")
    generate = SampledCompletions(backend, TheirLetters(), SamplingParams(), context_length=10)
    generate(["abc", "abcdefghij"], max_new_tokens=6, stop=())
    a, b, c, h, i, j = Letters().encode("abchij")
    assert [ids for ids, _ in backend.asked] == [[BOS, a, b, c], [BOS, h, i, j]]


def test_a_long_prompt_loses_its_beginning_and_says_so():
    backend = _Echo("x", finish="length")
    generate = SampledCompletions(backend, _Letters(), SamplingParams(), context_length=10)
    short, long = generate(["abc", "abcdefghij"], max_new_tokens=6, stop=())
    assert not short.prompt_truncated and long.prompt_truncated and long.finish == "length"
    assert ["".join(map(chr, ids)) for ids, _ in backend.asked] == ["abc", "ghij"]
    with pytest.raises(ValueError, match="no room for a prompt in a context of 10"):
        generate(["a"], max_new_tokens=10, stop=())
