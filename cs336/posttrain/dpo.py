"""Direct preference optimization: the loss of a pair, and the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from cs336.hardware import device_of
from cs336.model.logprobs import get_response_log_probs
from cs336.posttrain.epochs import micro_batches, tune
from cs336.posttrain.loop import Evaluate, Outcome, UpdateConfig
from cs336.posttrain.masked import masked_normalize
from cs336.posttrain.policy import autocast, longest_row, mark_of_rows, mark_of_weights, use_gpu_kernels
from cs336.posttrain.preferences import Preference
from cs336.posttrain.tokenize import prompt_and_output_batch
from cs336.progress import Progress, silent
from cs336.tokens.chat import alpaca_text
from cs336.tokens.codec import encode_texts, end_of_text_id, pad_id
from cs336.train.metrics import Report

if TYPE_CHECKING:
    from jaxtyping import Float


def compute_per_instance_dpo_loss(
    lm: nn.Module,
    lm_ref: nn.Module,
    tokenizer: Any,
    beta: float,
    prompt: str,
    response_chosen: str,
    response_rejected: str,
) -> Float[Tensor, ""]:
    """-log sigmoid(beta (log-ratio of the policy - log-ratio of the reference)) of one pair.

    Both texts are in the Alpaca form with the end-of-text token directly after the response. A ratio is that of
    the probabilities of whole texts, in which the prompt's cancels.

    Args:
        lm: the policy.
        lm_ref: the reference, which gets no gradient; may be on another device.
        tokenizer: ours, or one of transformers.
        beta: how dear it is to leave the reference.

    Returns:
        The loss, on the policy's device.

    Source: Rafailov et al. 2023, arXiv:2305.18290, equation 7.
    """
    pair = _documents(tokenizer, [(prompt, response_chosen), (prompt, response_rejected)])
    log_probs = sequence_log_probs(lm, pair, pad_id(tokenizer))
    with torch.no_grad():
        reference = sequence_log_probs(lm_ref, pair, pad_id(tokenizer))
    return dpo_loss(log_probs.view(1, 2), reference.to(log_probs.device).view(1, 2), beta).losses.squeeze(0)


def sequence_log_probs(
    model: nn.Module, rows: Sequence[Sequence[int]], padding: int, *, precision: str = "float32"
) -> Float[Tensor, " rows"]:
    """Log-probability of each text, the sum over its tokens but the first, in nats; on the model's device.

    Args:
        rows: ids of texts.
        padding: any id.
    """
    device = device_of(model)
    batch = prompt_and_output_batch([row[:1] for row in rows], [row[1:] for row in rows], padding)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    with autocast(device, precision):
        log_probs = get_response_log_probs(model, batch["input_ids"], batch["labels"])["log_probs"]
    return masked_normalize(log_probs, batch["response_mask"], 1.0, dim=-1)


class DpoLoss(NamedTuple):
    """What pairs cost.

    Attributes:
        losses: nats.
        rewards: beta times the policy's log-probability less the reference's, of chosen and rejected texts.
    """

    losses: Float[Tensor, " pairs"]
    rewards: Float[Tensor, "pairs 2"]


def dpo_loss(log_probs: Float[Tensor, "pairs 2"], reference: Float[Tensor, "pairs 2"], beta: float) -> DpoLoss:
    """Loss and implicit rewards from the log-probabilities of chosen (column 0) and rejected (1) texts."""
    chosen, rejected = log_probs.unbind(1)
    reference_chosen, reference_rejected = reference.unbind(1)
    losses = -logsigmoid(beta * ((chosen - rejected) - (reference_chosen - reference_rejected)))
    return DpoLoss(losses, beta * (log_probs - reference))


@dataclass(frozen=True, kw_only=True)
class DpoConfig(UpdateConfig):
    """How a model is tuned on preferences; the defaults are the handout's.

    Attributes:
        beta: how dear it is to leave the reference.
        max_tokens: pairs of which one text is longer are left out; 0 for what the model's context holds.
    """

    batch_size: int = 64
    micro_batch_size: int = 1  # two models of 8 B leave no room for more
    learning_rate: float = 1e-6
    optimizer: str = "rmsprop"  # AdamW's states do not fit beside an 8 B model
    best_by: str = "valid_accuracy"
    best_is: str = "highest"
    beta: float = 0.1
    max_tokens: int = 0


def train_dpo(
    policy: nn.Module,
    reference: nn.Module,
    tokenizer: Any,
    train_pairs: Sequence[Preference],
    valid_pairs: Sequence[Preference],
    config: DpoConfig,
    *,
    seed: int,
    folder: Path,
    evaluate: Evaluate | None = None,
    report: Report = lambda row: None,
    progress: Progress = silent,
) -> Outcome:
    """Tune a policy on preferences; see `run_updates` for the run, its files and its errors.

    Rows and validations have, with `train_` or `valid_` before it: `loss`; `accuracy`, the share of pairs whose chosen
    text is the likelier one for the policy; `implicit_accuracy`, the share whose chosen text has the greater reward;
    `margin`, the mean difference of the rewards; `chosen_reward` and `rejected_reward`, their means. Validations have
    `num_valid_pairs`, too, those that are short enough.

    Args:
        reference: frozen; may be on another device, and must be another model than the policy.

    Raises:
        ValueError: the reference is the policy, or no pair is short enough.
    """
    if reference is policy:
        raise ValueError("policy and reference are one model; give the reference a copy of its own")
    objective = _Pairs(policy, reference, tokenizer, train_pairs, valid_pairs, config)
    return tune(
        policy,
        objective,
        config,
        seed=seed,
        folder=folder,
        tokenizer=tokenizer,
        evaluate=evaluate,
        report=report,
        progress=progress,
    )


class _Pairs:
    """The loss of preference pairs against a frozen model."""

    def __init__(
        self,
        policy: nn.Module,
        reference: nn.Module,
        tokenizer: Any,
        train_pairs: Sequence[Preference],
        valid_pairs: Sequence[Preference],
        config: DpoConfig,
    ) -> None:
        limit = config.max_tokens or longest_row(policy)
        self._train, self._valid = (_encoded(tokenizer, pairs, limit) for pairs in (train_pairs, valid_pairs))
        for rows, pairs, kind in ((self._train, train_pairs, "training"), (self._valid, valid_pairs, "valid")):
            if not rows:
                raise ValueError(
                    f"none of {len(pairs)} {kind} pairs has at most {limit} tokens a text; give shorter ones"
                )
        self._config, self._padding, self._device = config, pad_id(tokenizer), device_of(policy)
        self._reference = reference.eval().requires_grad_(False)
        use_gpu_kernels(reference)  # as the policy, or the two would differ before the first step
        self._valid_reference: Tensor | None = None  # the same in every validation
        self.num_examples = len(self._train)
        self.num_left_out = len(train_pairs) - len(self._train)
        self._lengths, self._valid_lengths = (
            [max(map(len, pair)) for pair in pairs] for pairs in (self._train, self._valid)
        )
        self.marks: Mapping[str, str] = {
            "train_pairs": mark_of_rows([row for pair in self._train for row in pair]),
            "valid_pairs": mark_of_rows([row for pair in self._valid for row in pair]),
            "reference": mark_of_weights(reference),
        }

    def add_gradients(self, model: nn.Module, places: Sequence[int]) -> Mapping[str, Tensor | float]:
        log_probs, references = [], []
        for some in micro_batches(places, self._lengths, self._config.examples_at_once):
            pairs = [self._train[place] for place in some]
            references.append(self._reference_log_probs(pairs))
            log_probs.append(self._log_probs(model, pairs))
            (dpo_loss(log_probs[-1], references[-1], self._config.beta).losses.sum() / len(places)).backward()
            log_probs[-1] = log_probs[-1].detach()
        measured = _measured("train", torch.cat(log_probs), torch.cat(references), self._config.beta)
        return measured | {"num_tokens": sum(len(row) for place in places for row in self._train[place])}

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        parts = list(micro_batches(range(len(self._valid)), self._valid_lengths, self._config.examples_at_once))
        pairs = [[self._valid[place] for place in part] for part in parts]
        if self._valid_reference is None:
            self._valid_reference = torch.cat([self._reference_log_probs(part) for part in pairs])
        log_probs = torch.cat([self._log_probs(model, part) for part in pairs])
        measured = _measured("valid", log_probs, self._valid_reference, self._config.beta)
        return {name: value.item() for name, value in measured.items()} | {"num_valid_pairs": len(self._valid)}

    def _log_probs(self, model: nn.Module, pairs: Sequence[_Pair]) -> Float[Tensor, "pairs 2"]:
        rows = [row for pair in pairs for row in pair]
        return sequence_log_probs(model, rows, self._padding, precision=self._config.precision).view(-1, 2)

    @torch.no_grad()
    def _reference_log_probs(self, pairs: Sequence[_Pair]) -> Float[Tensor, "pairs 2"]:
        return self._log_probs(self._reference, pairs).to(self._device)


_Pair = tuple[list[int], list[int]]


def _encoded(tokenizer: Any, pairs: Sequence[Preference], limit: int | None) -> list[_Pair]:
    """Ids of chosen and rejected texts, those pairs left out of which one is too long."""
    chosen = _documents(tokenizer, [(pair.instruction, pair.chosen) for pair in pairs])
    rejected = _documents(tokenizer, [(pair.instruction, pair.rejected) for pair in pairs])
    return [pair for pair in zip(chosen, rejected, strict=True) if limit is None or max(map(len, pair)) <= limit]


def _documents(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
    """Ids of prompts with their responses, in the Alpaca form."""
    texts = [alpaca_text(*pair) for pair in pairs]
    end = end_of_text_id(tokenizer)
    return [[*ids, end] for ids in encode_texts(tokenizer, texts, special_tokens=True)]


def _measured(kind: str, log_probs: Tensor, reference: Tensor, beta: float) -> dict[str, Tensor]:
    losses, rewards = dpo_loss(log_probs, reference, beta)
    columns = {
        "loss": losses,
        "accuracy": log_probs[:, 0] > log_probs[:, 1],
        "implicit_accuracy": rewards[:, 0] > rewards[:, 1],
        "margin": rewards[:, 0] - rewards[:, 1],
        "chosen_reward": rewards[:, 0],
        "rejected_reward": rewards[:, 1],
    }
    return {f"{kind}_{name}": values.float().mean() for name, values in columns.items()}
