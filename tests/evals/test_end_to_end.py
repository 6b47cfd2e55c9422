"""The tasks with our own engine and a small random Transformer."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from cs336.evals.alpaca_eval import alpaca_predictions, predict_alpaca_eval
from cs336.evals.choices import ChoiceItem, evaluate_choices
from cs336.evals.generated_tasks import GeneratedConfig, generate_problems, to_question
from cs336.evals.gsm8k import evaluate_gsm8k
from cs336.evals.mmlu import evaluate_mmlu
from cs336.evals.perplexity import evaluate_perplexity
from cs336.evals.reasoning import evaluate_reasoning
from cs336.evals.report import score_rows, text_table
from cs336.evals.task import ALPACA, EvalConfig, read_sample
from cs336.generate.engine import continuation_logprobs, generate
from cs336.model.transformer import ModelConfig, TransformerLM


class Bytes:
    """A real tokenizer of the plainest kind: UTF-8 bytes, and 256 for the end of a text."""

    end_of_text_id = 256

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(i for i in ids if i < 256).decode(errors="replace")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TransformerLM(
        ModelConfig(vocab_size=257, context_length=128, d_model=32, num_layers=2, num_heads=2, d_ff=64)
    ).eval()


def test_both_question_sets_run_on_a_random_model_and_make_a_table(model):
    config = EvalConfig(max_mmlu=8, max_gsm8k=8, max_new_tokens=12)
    write = partial(generate, model, Bytes(), batch_size=4)
    choose = partial(continuation_logprobs, model, Bytes(), batch_size=4)
    mmlu = evaluate_mmlu(read_sample("mmlu"), generate=write, choose=choose, config=config, name="mmlu sample")
    gsm8k = evaluate_gsm8k(read_sample("gsm8k"), generate=write, config=config, name="gsm8k sample")
    again = evaluate_mmlu(read_sample("mmlu"), generate=write, choose=choose, config=config, name="mmlu sample")
    assert mmlu.rows == again.rows
    assert mmlu.metrics["num_examples"] == gsm8k.metrics["num_examples"] == 8
    assert mmlu.metrics["num_prompts_truncated"] == 8  # the wrapper alone is longer than 128 bytes
    assert all(logprob < 0 for row in mmlu.rows for logprob in row["choice_logprobs"])
    rows = [
        row
        for result, task in ((mmlu, "mmlu"), (gsm8k, "gsm8k"))
        for row in score_rows(result.metrics, preset="tiny", model="random", task=task, set_name=result.name)
    ]
    assert "gsm8k sample" in text_table(rows)


def test_reasoning_choices_and_free_answers_run_with_our_engine(model):
    write = partial(generate, model, Bytes(), batch_size=4)
    questions = [to_question(problem) for problem in generate_problems(GeneratedConfig(levels=(1,)), "test", 6)]
    nothing = {"format_reward": 0.0, "answer_reward": 0.0, "reward": 0.0}
    reasoning = evaluate_reasoning(
        questions,
        reward=lambda responses, truths: [nothing] * len(responses),
        generate=write,
        name="generated",
        template="r1_zero_short",
        max_new_tokens=8,
    )
    assert reasoning.metrics["categories"]["(0,0)"]["count"] == 6
    instructions = [{"instruction": question["question"], "dataset": "x"} for question in questions]
    free = predict_alpaca_eval(instructions, generate=write, max_new_tokens=8, frame=ALPACA)
    assert len(alpaca_predictions(free, generator="random")) == 6
    items = [ChoiceItem(((question["question"], " 1"), (question["question"], " 234567")), 0) for question in questions]
    choices = evaluate_choices(items, choose=partial(continuation_logprobs, model, Bytes()), name="numbers")
    assert choices.metrics["choice_accuracy"] == 1.0  # the shorter is likelier to a model that knows nothing


def test_a_random_model_is_about_as_perplexed_as_a_uniform_one(model):
    text = " ".join(example["question"] for example in read_sample("gsm8k")).encode()
    tokens = np.array([*text, 256], dtype=np.uint16)
    result = evaluate_perplexity(model, tokens, context_length=128, num_bytes=len(text), end_of_text=256)
    assert 257 / 4 < result["perplexity"] < 257 * 4
    # One token a byte and one end of text: the two units differ by their number alone.
    assert result["bits_per_byte"] == pytest.approx(
        result["nats_per_token"] / np.log(2) * len(tokens) / len(text), rel=1e-9
    )
