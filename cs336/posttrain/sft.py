"""Supervised fine-tuning on responses: the loss of a micro-batch, and the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cs336.hardware import device_of
from cs336.model.logprobs import get_response_log_probs
from cs336.posttrain.epochs import micro_batches, tune
from cs336.posttrain.loop import Evaluate, Outcome, UpdateConfig
from cs336.posttrain.masked import masked_mean, masked_normalize
from cs336.posttrain.policy import autocast, longest_row, mark_of_rows
from cs336.posttrain.tokenize import first_response_column, prompt_and_output_batch
from cs336.progress import Progress, silent
from cs336.tokens.codec import encode_prompts, encode_texts, end_of_text_id, pad_id
from cs336.train.metrics import Report

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def sft_microbatch_train_step(
    policy_log_probs: Float[Tensor, "batch seq"],
    response_mask: Bool[Tensor, "batch seq"],
    gradient_accumulation_steps: float,
    normalize_constant: float = 1.0,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Add a micro-batch's gradient: the mean over its rows of the responses' negative log-likelihood.

    Args:
        policy_log_probs: of the labels, in nats.
        gradient_accumulation_steps: micro-batches whose mean is wanted.
        normalize_constant: what each row's sum is divided by.

    Returns:
        The loss, already divided by `gradient_accumulation_steps` and without gradient; and `num_response_tokens`
        and `nats_per_token` of the micro-batch.
    """
    per_row = -masked_normalize(policy_log_probs, response_mask, normalize_constant, dim=-1)
    loss = per_row.mean() / gradient_accumulation_steps
    loss.backward()
    metadata = {
        "num_response_tokens": response_mask.sum(),
        "nats_per_token": -masked_mean(policy_log_probs.detach(), response_mask),
    }
    return loss.detach(), metadata


@dataclass(frozen=True, kw_only=True)
class SftConfig(UpdateConfig):
    """How a model is tuned on responses.

    Attributes:
        normalize_constant: what the summed loss of a response is divided by; all tokens weigh the same.
        end_of_text: the end-of-text token follows each response and is learnt. The handout's responses end with
            `</answer>` instead, at which sampling stops.
        max_tokens: longer examples, prompt and response, are left out; 0 for what the model's context holds.
    """

    normalize_constant: float = 1.0
    end_of_text: bool = False
    max_tokens: int = 0


def train_sft(
    model: nn.Module,
    tokenizer: Any,
    train_examples: Sequence[tuple[str, str]],
    valid_examples: Sequence[tuple[str, str]],
    config: SftConfig,
    *,
    seed: int,
    folder: Path,
    evaluate: Evaluate | None = None,
    report: Report = lambda row: None,
    progress: Progress = silent,
) -> Outcome:
    """Tune a model on responses to prompts; see `run_updates` for the run, its files and its errors.

    Each step's row has `train_loss` (that of the micro-batches, summed), and of the response tokens their number,
    `nats_per_token` and the mean `token_entropy` of what the model would have said there; a validation has
    `valid_loss` (nats per response token) and `valid_entropy`.

    Args:
        train_examples, valid_examples: (prompt, response); without valid ones, a validation is what `evaluate` says.

    Raises:
        ValueError: no examples to train on, or an empty response.
    """
    objective = _Responses(model, tokenizer, train_examples, valid_examples, config)
    return tune(
        model,
        objective,
        config,
        seed=seed,
        folder=folder,
        tokenizer=tokenizer,
        evaluate=evaluate,
        report=report,
        progress=progress,
    )


def encode_examples(
    tokenizer: Any, examples: Sequence[tuple[str, str]], *, end_of_text: bool, max_tokens: int | None
) -> list[tuple[list[int], list[int]]]:
    """Ids of prompts and responses, those that are too long left out.

    Raises:
        ValueError: an empty response.
    """
    end = [end_of_text_id(tokenizer)] if end_of_text else []
    prompts = encode_prompts(tokenizer, [prompt for prompt, _ in examples])
    responses = encode_texts(tokenizer, [response for _, response in examples], special_tokens=False)
    rows = []
    for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if not response + end:
            raise ValueError(f"example {number} has an empty response; leave it out, or set end_of_text")
        if max_tokens is None or len(prompt) + len(response + end) <= max_tokens:
            rows.append((prompt, response + end))
    return rows


class _Responses:
    """Negative log-likelihood of responses."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        train_examples: Sequence[tuple[str, str]],
        valid_examples: Sequence[tuple[str, str]],
        config: SftConfig,
    ) -> None:
        limit = config.max_tokens or longest_row(model)
        self._train, self._valid = (
            encode_examples(tokenizer, examples, end_of_text=config.end_of_text, max_tokens=limit)
            for examples in (train_examples, valid_examples)
        )
        for rows, examples, kind in ((self._train, train_examples, "training"), (self._valid, valid_examples, "valid")):
            if examples and not rows:
                raise ValueError(
                    f"none of {len(examples)} {kind} examples has at most {limit} tokens; give shorter ones"
                )
        self._lengths = [len(prompt) + len(response) for prompt, response in self._train]
        self._config, self._device, self._padding = config, device_of(model), pad_id(tokenizer)
        self.num_examples = len(self._train)
        self.marks: Mapping[str, str] = {
            "train_examples": mark_of_rows([ids for pair in self._train for ids in pair]),
            "valid_examples": mark_of_rows([ids for pair in self._valid for ids in pair]),
        }
        self.num_left_out = len(train_examples) - len(self._train)

    def add_gradients(self, model: nn.Module, places: Sequence[int]) -> Mapping[str, Tensor | float]:
        losses, nats, entropies, counts, num_tokens = [], [], [], [], 0
        for some in micro_batches(places, self._lengths, self._config.examples_at_once):
            batch, start = self._batch([self._train[place] for place in some])
            scores = self._scores(model, batch, start)
            loss, metadata = sft_microbatch_train_step(
                scores["log_probs"],
                batch["response_mask"],
                # Micro-batches of unlike size: each adds its share of the whole batch's mean.
                gradient_accumulation_steps=len(places) / len(some),
                normalize_constant=self._config.normalize_constant,
            )
            count = metadata["num_response_tokens"]
            losses.append(loss)
            counts.append(count)
            nats.append(metadata["nats_per_token"] * count)
            entropies.append(masked_normalize(scores["token_entropy"], batch["response_mask"], 1.0))
            num_tokens += sum(self._lengths[place] for place in some)
        num_response_tokens = torch.stack(counts).sum()
        return {
            "train_loss": torch.stack(losses).sum(),
            "nats_per_token": torch.stack(nats).sum() / num_response_tokens,
            "token_entropy": torch.stack(entropies).sum() / num_response_tokens,
            "num_response_tokens": num_response_tokens,
            "num_tokens": num_tokens,
        }

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        if not self._valid:
            return {}
        lengths = [len(prompt) + len(response) for prompt, response in self._valid]
        sums = torch.zeros(3, dtype=torch.float64)
        for some in micro_batches(range(len(self._valid)), lengths, self._config.examples_at_once):
            batch, start = self._batch([self._valid[place] for place in some])
            scores, mask = self._scores(model, batch, start), batch["response_mask"]
            parts = -scores["log_probs"], scores["token_entropy"], torch.ones_like(scores["log_probs"])
            sums += torch.stack([masked_normalize(part, mask, 1.0) for part in parts]).to("cpu", torch.float64)
        nats, entropy, count = sums.tolist()
        return {"valid_loss": nats / count, "valid_entropy": entropy / count}

    def _batch(self, rows: Sequence[tuple[list[int], list[int]]]) -> tuple[dict[str, Tensor], int]:
        """Rows side by side, and the column where the first response begins."""
        prompts = [prompt for prompt, _ in rows]
        batch = prompt_and_output_batch(prompts, [response for _, response in rows], self._padding)
        return {name: tensor.to(self._device) for name, tensor in batch.items()}, first_response_column(prompts)

    def _scores(self, model: nn.Module, batch: Mapping[str, Tensor], start: int) -> dict[str, Tensor]:
        with autocast(self._device, self._config.precision):
            return get_response_log_probs(
                model, batch["input_ids"], batch["labels"], return_token_entropy=True, start=start
            )
