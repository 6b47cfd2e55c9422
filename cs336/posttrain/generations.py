"""What a policy writes, with its rewards, lengths and entropies: rows to read, and their means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import nn

from cs336.evals.rewards import RewardFn
from cs336.model.logprobs import get_response_log_probs
from cs336.posttrain.epochs import micro_batches
from cs336.posttrain.masked import masked_mean
from cs336.posttrain.policy import autocast, device_of
from cs336.posttrain.tokenize import prompt_and_output_batch
from cs336.tokens.codec import encode_texts, pad_id


@torch.no_grad()
def log_generations(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    responses: Sequence[str],
    ground_truths: Sequence[Any],
    reward_fn: RewardFn,
    *,
    batch_size: int = 8,
    precision: str = "float32",
) -> tuple[list[dict[str, Any]], dict[str, float | None]]:
    """Grade responses and look at how sure the model was of them.

    Args:
        model: the policy, whose entropies are wanted; its mode stays as it is.
        responses: whatever wrote them.

    Returns:
        A row for each response: `prompt`, `response`, `ground_truth`, `format_reward`, `answer_reward`, `reward`,
        `num_tokens`, and `mean_token_entropy` in nats over the response (None if that is empty). And the means of
        rewards, entropies and lengths, the last as `mean_length`, `mean_length_correct` and `mean_length_incorrect`
        in tokens; None where there is no such response. Correct is a response whose answer got a reward.

    Raises:
        ValueError: no responses, or not as many of one as of another.
    """
    if not responses or not len(prompts) == len(responses) == len(ground_truths):
        raise ValueError(
            f"{len(prompts)} prompts, {len(responses)} responses and {len(ground_truths)} ground truths;"
            " give at least one, and as many of each"
        )
    device, padding = device_of(model), pad_id(tokenizer)
    sides = (encode_texts(tokenizer, texts, special_tokens=False) for texts in (prompts, responses))
    ids = list(zip(*sides, strict=True))
    entropies = [math.nan] * len(ids)
    for some in micro_batches(range(len(ids)), [len(prompt) + len(output) for prompt, output in ids], batch_size):
        batch = prompt_and_output_batch([ids[place][0] for place in some], [ids[place][1] for place in some], padding)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        with autocast(device, precision):
            scores = get_response_log_probs(model, batch["input_ids"], batch["labels"], return_token_entropy=True)
        means = masked_mean(scores["token_entropy"], batch["response_mask"], dim=-1).tolist()
        for place, entropy in zip(some, means, strict=True):
            entropies[place] = entropy
    rows = [
        {
            "prompt": prompts[number],
            "response": responses[number],
            "ground_truth": ground_truths[number],
            **{name: float(reward) for name, reward in reward_fn(responses[number], ground_truths[number]).items()},
            "num_tokens": len(output),
            "mean_token_entropy": entropies[number] if output else None,
        }
        for number, (_, output) in enumerate(ids)
    ]
    return rows, _means(rows)


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    def mean(name: str, some: Sequence[dict[str, Any]] = rows) -> float | None:
        values = [row[name] for row in some if row[name] is not None]
        return fmean(values) if values else None

    return {
        **{name: mean(name) for name in ("reward", "format_reward", "answer_reward", "mean_token_entropy")},
        "mean_length": mean("num_tokens"),
        "mean_length_correct": mean("num_tokens", [row for row in rows if row["answer_reward"] > 0]),
        "mean_length_incorrect": mean("num_tokens", [row for row in rows if not row["answer_reward"] > 0]),
    }
