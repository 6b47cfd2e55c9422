"""The log of generations: rows and means by hand, entropies from the logits."""

import pytest
import torch

from cs336.posttrain.generations import log_generations
from tests.posttrain.models import MODELS, our_model
from tests.posttrain.tokenizers import Letters

PROMPTS = ["what is a? ", "what is b? ", "c? ", "d? "]
RESPONSES = ["aa", "b, i think", "", "e"]
TRUTHS = ["aa", "b", "c", "d"]


def _reward(response, truth):
    right = float(response.startswith(truth))
    return {"reward": right, "format_reward": float(len(response) > 1), "answer_reward": right}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_rows_and_means(kind, batch_size):
    model = MODELS[kind]().train()
    rows, means = log_generations(model, Letters(), PROMPTS, RESPONSES, TRUTHS, _reward, batch_size=batch_size)
    entropies = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        ids = Letters().encode(prompt + response)
        output = model(torch.tensor([ids[:-1]]))
        log_p = torch.log_softmax(getattr(output, "logits", output)[0].double(), dim=-1)
        entropy = -(log_p.exp() * log_p).sum(-1)[len(ids) - 1 - len(response) :]
        entropies.append(entropy.mean().item() if response else None)
    for number, row in enumerate(rows):
        assert (row["prompt"], row["response"], row["ground_truth"]) == (
            PROMPTS[number],
            RESPONSES[number],
            TRUTHS[number],
        )
        assert row["num_tokens"] == len(RESPONSES[number])
        assert row["mean_token_entropy"] == pytest.approx(entropies[number], abs=1e-5)
    assert [row["reward"] for row in rows] == [row["answer_reward"] for row in rows] == [1, 1, 0, 0]
    assert [row["format_reward"] for row in rows] == [1, 1, 0, 0]
    known = [entropy for entropy in entropies if entropy is not None]
    assert means == pytest.approx(
        {
            "reward": 0.5,
            "format_reward": 0.5,
            "answer_reward": 0.5,
            "mean_token_entropy": sum(known) / 3,
            "mean_length": 13 / 4,
            "mean_length_correct": 6.0,
            "mean_length_incorrect": 0.5,
        },
        abs=1e-5,
    )
    assert model.training


def test_where_all_are_right_there_is_no_length_of_the_wrong():
    _, means = log_generations(our_model(), Letters(), PROMPTS[:1], RESPONSES[:1], TRUTHS[:1], _reward)
    assert means["mean_length_correct"] == 2 and means["mean_length_incorrect"] is None
    with pytest.raises(ValueError, match="1 prompts, 2 responses and 1 ground truths"):
        log_generations(our_model(), Letters(), ["a"], ["b", "c"], ["d"], _reward)
    with pytest.raises(ValueError, match="0 prompts"):
        log_generations(our_model(), Letters(), [], [], [], _reward)
