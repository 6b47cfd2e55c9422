"""Batched, cached, padded generation equals the plain loop; log-probabilities equal a full pass."""

import pytest
import torch

from cs336.generate.engine import continuation_logprobs, generate
from cs336.generate.sampling import next_token_probabilities, sample
from cs336.model.transformer import ModelConfig, TransformerLM


class Characters:
    """A tokenizer of letters: a = 1, b = 2, ...; 0 ends a text."""

    end_of_text_id = 0

    def encode(self, text):
        return [ord(character) - 96 for character in text]

    def decode(self, ids):
        return "".join(chr(96 + i) for i in ids)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    config = ModelConfig(context_length=32, d_model=32, num_layers=2, num_heads=4, vocab_size=27)
    return TransformerLM(config).eval()


PROMPTS = ["hello", "a", "themodelsees", "z" * 60]


def test_greedy_batches_equal_the_plain_loop(model):
    completions = generate(model, Characters(), PROMPTS, max_new_tokens=12)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        ids = Characters().encode(prompt)[-20:]
        start = len(ids)
        while len(ids) < start + 12 and (len(ids) == start or ids[-1] != 0):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert completion.text == Characters().decode([i for i in ids[start:] if i])
        assert completion.finish == ("end" if ids[-1] == 0 else "length")
        assert completion.prompt_truncated == (len(prompt) > 20)


def test_samples_do_not_depend_on_the_batch(model):
    options = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.9, "seed": 5}
    together = generate(model, Characters(), PROMPTS, **options)
    alone = generate(model, Characters(), PROMPTS, batch_size=1, **options)
    assert together == alone
    assert together != generate(model, Characters(), PROMPTS, **{**options, "seed": 6})


def test_a_stop_string_ends_the_text_before_it(model):
    free = generate(model, Characters(), ["hello"], max_new_tokens=8)[0]
    stopped = generate(model, Characters(), ["hello"], max_new_tokens=8, stop=[free.text[2:4]])[0]
    assert stopped.finish == "stop" and stopped.text == free.text[: free.text.index(free.text[2:4])]


def test_no_room_for_a_prompt_is_an_error(model):
    with pytest.raises(ValueError, match="no room"):
        generate(model, Characters(), ["a"], max_new_tokens=32)


def test_continuation_logprobs_equal_a_full_pass(model):
    pairs = [("hello", "abc"), ("a", "z"), ("thisisalong", "prompt")]
    actual = continuation_logprobs(model, Characters(), pairs)
    for (prompt, continuation), value in zip(pairs, actual, strict=True):
        ids = Characters().encode(prompt + continuation)
        logprobs = torch.log_softmax(model(torch.tensor([ids]))[0], dim=-1)
        places = range(len(prompt), len(ids))
        assert value == pytest.approx(sum(logprobs[i - 1, ids[i]].item() for i in places), abs=1e-4)


def test_top_p_keeps_the_token_that_crosses_the_line():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    actual = next_token_probabilities(logits, temperature=1.0, top_p=0.6)
    torch.testing.assert_close(actual, torch.tensor([0.625, 0.375, 0.0, 0.0]))


def test_temperature_zero_is_argmax_and_low_temperature_approaches_it():
    logits = torch.tensor([0.1, 2.0, 1.9])
    assert sample(logits, temperature=0) == 1
    assert next_token_probabilities(logits, temperature=0.01)[1] > 0.99


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"temperature": 1.0, "top_p": 0.0}])
def test_settings_out_of_range_are_errors(bad):
    with pytest.raises(ValueError):
        next_token_probabilities(torch.zeros(3), **bad)
