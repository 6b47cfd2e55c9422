"""The GRPO run: sample groups of responses, compare each with its group, update, again; resumable after a kill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cs336.evals.rewards import RewardAll
from cs336.generate.backend import Backend, SamplingParams
from cs336.hardware import device_of, to_device
from cs336.posttrain.advantages import group_advantages, grouped_rewards, reward_statistics
from cs336.posttrain.epochs import micro_batches
from cs336.posttrain.grpo import GrpoConfig, grpo_microbatch_train_step
from cs336.posttrain.loop import Outcome, run_updates
from cs336.posttrain.masked import masked_normalize
from cs336.posttrain.rollouts import (
    Problem,
    RolloutValidation,
    Rows,
    Sampler,
    mark_of_problems,
    problems_of_step,
    response_log_probs,
)
from cs336.progress import Progress, silent
from cs336.tokens.packing import shuffled
from cs336.train.metrics import Report


def train_grpo(
    model: nn.Module,
    tokenizer: Any,
    backend: Backend,
    train_problems: Sequence[Problem],
    valid_problems: Sequence[Problem],
    config: GrpoConfig,
    *,
    reward: RewardAll,
    seed: int,
    folder: Path,
    stop: tuple[str, ...] = (),
    hand_over: bool = False,
    report: Report = lambda row: None,
    progress: Progress = silent,
) -> Outcome:
    """Train a policy on rewards for its own responses; see `run_updates` for the run, its files and its errors.

    Each update has a row: `train_loss` (which tells nothing), `grad_norm`, `token_entropy` of the responses; off-policy
    the mean and greatest ratio to the policy that sampled, `ratio_mean` and `ratio_max`, and the share of tokens that
    is clipped, `clip_fraction`, or would be if the loss clipped, `would_clip_fraction`; `reward`, `format_reward`,
    `answer_reward` and the other `reward_statistics` of its rollout batch, and lengths. The first update of a batch
    also has `sync_seconds`, `generate_seconds` and `grade_seconds` (what is left of its `step_seconds` is training),
    and how far the generator's log-probabilities are from the policy's, `max_logprob_difference` and
    `mean_logprob_difference` in nats. A validation adds what `RolloutValidation` measures, and leaves responses to
    read below `rollouts/`.

    Dropout, should the model have any, acts in updates alone, so that not even a batch's first has ratios of 1.
    Problems come in an order that is drawn anew for each pass over them. Resumed with our engine a run ends with the
    same weights bit for bit; with vLLM all state is restored, but its sums may be rounded otherwise.

    Args:
        model: the policy, ours or transformers'.
        backend: the generator, on this device or another; gets the policy's weights before each rollout batch.
        reward: of all responses of a batch.
        stop: strings at which responses end, and which they keep; "</answer>" for the prompts that think.
        hand_over: see `Sampler`.

    Raises:
        ValueError: fewer problems than a batch has questions, or none to validate on.
    """
    if len(train_problems) < config.num_questions or not valid_problems:
        raise ValueError(
            f"{len(train_problems)} training and {len(valid_problems)} validation problems; a rollout batch takes"
            f" {config.num_questions} questions, and a validation at least one"
        )
    params = SamplingParams(
        temperature=config.sampling_temperature,
        min_tokens=config.sampling_min_tokens,
        max_tokens=config.sampling_max_tokens,
        stop=stop,
    )
    sampler = Sampler(backend, tokenizer, reward, params, seed=seed, hand_over=hand_over)
    return run_updates(
        model,
        _Grpo(model, tokenizer, sampler, train_problems, valid_problems, config, seed=seed, folder=folder),
        config.updates,
        seed=seed,
        folder=folder,
        tokenizer=tokenizer,
        report=report,
        progress=progress,
    )


class _Grpo:
    """Updates on rollouts: a step is an update, and the first of each batch samples it."""

    num_left_out = 0

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        sampler: Sampler,
        train_problems: Sequence[Problem],
        valid_problems: Sequence[Problem],
        config: GrpoConfig,
        *,
        seed: int,
        folder: Path,
    ) -> None:
        self._tokenizer, self._sampler, self._config, self._seed = tokenizer, sampler, config, seed
        self._problems, self._device = train_problems, device_of(model)
        self._validation = RolloutValidation(sampler, valid_problems, folder, precision=config.precision)
        self.num_steps = config.n_grpo_steps * config.num_updates
        settings = {name: getattr(config, name) for name in config.__dataclass_fields__ if name != "n_grpo_steps"}
        self.marks: Mapping[str, str] = {
            "train_problems": mark_of_problems(train_problems),
            "valid_problems": mark_of_problems(valid_problems),
            "grpo": repr(settings),
        }

    def validate(self, model: nn.Module, step: int) -> Mapping[str, float]:
        return self._validation(model, step)

    def add_gradients(self, model: nn.Module, step: int) -> Mapping[str, Tensor | float]:
        grpo_step, update = divmod(step, self._config.num_updates)
        columns: dict[str, Tensor | float] = {"grpo_step": grpo_step + 1}
        if update == 0:
            columns |= self._sample(model, grpo_step)
        return columns | self._batch_columns | self._update(model, grpo_step, update)

    def _sample(self, model: nn.Module, grpo_step: int) -> dict[str, float]:
        """A new rollout batch, its advantages and, where later updates need them, its log-probabilities now."""
        config = self._config
        problems = problems_of_step(self._problems, config.num_questions, grpo_step, seed=self._seed)
        sampled = self._sampler.sample(model, problems, n=config.group_size, step=grpo_step)
        self._rollouts = sampled.rollouts
        scores = [each.rewards for each in self._rollouts]
        numbers = [{name: value for name, value in each.items() if name != "lost"} for each in scores]
        rewards = grouped_rewards(numbers, config.group_size)
        advantages = group_advantages(rewards, normalize_by_std=config.use_std_normalization, eps=config.advantage_eps)
        self._rewards, self._advantages = (each.view(-1, 1).to(self._device) for each in (rewards, advantages))
        metrics = sampled.metrics()
        seconds = {name: metrics.pop(name) for name in list(metrics) if name.endswith("_seconds")}
        self._batch_columns = reward_statistics(numbers, config.group_size) | metrics
        self._rows = Rows(self._rollouts, self._tokenizer, self._device, config.precision)
        self._old = None
        if config.off_policy:
            model.eval()
            self._old = response_log_probs(model, self._rows, batch_size=config.micro_batch_size)
            model.train()
        return seconds

    def _places(self, grpo_step: int, update: int) -> list[int]:
        """Rollouts of an update: the next part of a batch, in an order of each pass over it."""
        size, total = self._config.train_batch_size, len(self._rollouts)
        epoch, part = divmod(update, total // size)
        number = grpo_step * self._config.epochs_per_rollout_batch + epoch
        return shuffled(total, seed=self._seed + 1, epoch=number)[part * size : (part + 1) * size]

    def _update(self, model: nn.Module, grpo_step: int, update: int) -> dict[str, Tensor | float]:
        config = self._config
        places = self._places(grpo_step, update)
        losses, entropies, differences = [], [], []
        ratios: list[dict[str, Tensor]] = []
        num_response_tokens = 0
        for some in micro_batches(places, self._rows.lengths, config.micro_batch_size):
            scores = self._rows.scores(model, some, entropy=True)
            rows = to_device(torch.tensor(some), self._device)  # an index of the host's would be waited for
            log_probs, mask = scores["log_probs"], scores["response_mask"]
            old = None
            if self._old is not None:
                old = self._rows.spread([self._old[place] for place in some], some, log_probs)
            if update == 0:
                theirs = [torch.from_numpy(np.array(self._rollouts[place].logprobs, np.float32)) for place in some]
                ours = log_probs.detach() if old is None else old
                difference = (ours - self._rows.spread(theirs, some, log_probs)).abs()
                differences.append(torch.where(mask, difference, 0.0))
            loss, metadata = grpo_microbatch_train_step(
                log_probs,
                mask,
                gradient_accumulation_steps=len(places) / len(some),
                loss_type=config.loss_type,
                raw_rewards=self._rewards[rows],
                advantages=self._advantages[rows],
                old_log_probs=old,
                cliprange=config.cliprange,
                normalize_constant=config.normalize_constant,
            )
            losses.append(loss)
            entropies.append(masked_normalize(scores["token_entropy"].detach(), mask, 1.0))
            if "ratio" in metadata:
                ratios.append(_ratio_sums(metadata, mask))
            num_response_tokens += sum(len(self._rollouts[place].token_ids) for place in some)
        columns: dict[str, Tensor | float] = {
            "train_loss": torch.stack(losses).sum(),
            "token_entropy": torch.stack(entropies).sum() / num_response_tokens,
            "num_response_tokens": num_response_tokens,
            "num_tokens": sum(self._rows.lengths[place] for place in places),
        }
        for name in ratios[0] if ratios else ():
            parts = torch.stack([each[name] for each in ratios])
            columns[name] = parts.max() if name == "ratio_max" else parts.sum() / num_response_tokens
        if differences:
            columns |= {
                "max_logprob_difference": torch.stack([each.max() for each in differences]).max(),
                "mean_logprob_difference": torch.stack([each.sum() for each in differences]).sum()
                / num_response_tokens,
            }
        return columns


# What a loss tells of each token -> the column of its mean.
_RATIO_COLUMNS = {"ratio": "ratio_mean", "clipped": "clip_fraction", "would_clip": "would_clip_fraction"}


def _ratio_sums(metadata: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Of a micro-batch's response tokens, the sums by column, and the greatest ratio."""
    sums = {
        column: masked_normalize(metadata[name].float(), mask, 1.0)
        for name, column in _RATIO_COLUMNS.items()
        if name in metadata
    }
    return sums | {"ratio_max": torch.where(mask, metadata["ratio"], 0.0).max()}
