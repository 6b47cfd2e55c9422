"""Policy-gradient losses of GRPO and its variants, one micro-batch's step, and the settings of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cs336.posttrain.loop import UpdateConfig
from cs336.posttrain.masked import masked_mean, masked_normalize

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

# no_baseline              REINFORCE on raw rewards
# reinforce_with_baseline  the same on advantages
# grpo_clip                advantages, with the probability ratio to the sampling policy, clipped (PPO's objective)
# grpo_no_clip             the same without clipping
LOSS_TYPES = ("no_baseline", "reinforce_with_baseline", "grpo_clip", "grpo_no_clip")
OFF_POLICY_LOSS_TYPES = ("grpo_clip", "grpo_no_clip")


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """Settings of a GRPO run; the defaults are the handout's.

    Attributes:
        n_grpo_steps: rollout batches.
        learning_rate: constant.
        betas, weight_decay: of AdamW.
        max_grad_norm: global l2 norm above which gradients are scaled down.
        rollout_batch_size: responses sampled in a step.
        group_size: of these, to each question.
        epochs_per_rollout_batch: how often each response is trained on.
        train_batch_size: responses in an optimizer step.
        gradient_accumulation_steps: micro-batches in an optimizer step.
        loss_type: one of `LOSS_TYPES`.
        use_std_normalization: advantages are divided by their group's standard deviation.
        advantage_eps: added to that deviation.
        cliprange: of grpo_clip; the handout leaves it open and gives 0.2 as an example. grpo_no_clip counts what it
            would have clipped.
        normalize_constant: what a response's summed loss is divided by; None for its own length.
        sampling_temperature, sampling_max_tokens: of rollouts, and of validations.
        sampling_min_tokens: of rollouts alone, where a response without tokens has no mean loss.
        precision: "float32" computes in the weights' own type, "bfloat16" matrix products under autocast.
        valid_interval: GRPO steps between two validations, after each of which a checkpoint is written.
        keep: "best" or "last", the weights that the run ends with; the best have the highest validation accuracy.
        max_seconds: of wall time, after which no update begins; 0 for no limit.

    Raises:
        ValueError: settings that do not go together.
    """

    n_grpo_steps: int = 200
    learning_rate: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    rollout_batch_size: int = 256
    group_size: int = 8
    epochs_per_rollout_batch: int = 1
    train_batch_size: int = 256
    gradient_accumulation_steps: int = 128
    loss_type: str = "reinforce_with_baseline"
    use_std_normalization: bool = True
    advantage_eps: float = 1e-6
    cliprange: float = 0.2
    normalize_constant: float | None = None
    sampling_temperature: float = 1.0
    sampling_min_tokens: int = 4
    sampling_max_tokens: int = 1024
    precision: str = "float32"
    valid_interval: int = 5
    keep: str = "best"
    max_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in (
            "n_grpo_steps",
            "rollout_batch_size",
            "epochs_per_rollout_batch",
            "train_batch_size",
            "gradient_accumulation_steps",
            "sampling_min_tokens",  # an empty response has no mean loss
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.group_size < 2:
            raise ValueError(f"group_size must be at least 2, or nothing is compared; got {self.group_size}")
        if self.loss_type not in LOSS_TYPES:
            raise ValueError(f"loss_type is one of {', '.join(LOSS_TYPES)}; got {self.loss_type!r}")
        if self.train_batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"train_batch_size {self.train_batch_size} does not divide by gradient_accumulation_steps"
                f" {self.gradient_accumulation_steps}"
            )
        if self.rollout_batch_size % self.group_size:
            raise ValueError(
                f"rollout_batch_size {self.rollout_batch_size} does not divide by group_size {self.group_size}"
            )
        if self.train_batch_size < self.group_size:
            raise ValueError(f"train_batch_size {self.train_batch_size} is below group_size {self.group_size}")
        if self.rollout_batch_size % self.train_batch_size:
            raise ValueError(
                f"rollout_batch_size {self.rollout_batch_size} does not divide by train_batch_size"
                f" {self.train_batch_size}"
            )
        if self.loss_type in OFF_POLICY_LOSS_TYPES and not self.off_policy:
            raise ValueError(
                f"{self.loss_type} with one update a rollout batch has a ratio of 1 everywhere; take"
                " reinforce_with_baseline, or a smaller train_batch_size or more epochs_per_rollout_batch"
            )
        if self.loss_type == "grpo_clip" and self.cliprange <= 0:
            raise ValueError(f"cliprange is above 0, got {self.cliprange}; grpo_no_clip turns clipping off")
        if self.normalize_constant is not None and self.normalize_constant <= 0:
            raise ValueError(f"normalize_constant is above 0, got {self.normalize_constant}")
        if self.sampling_max_tokens < self.sampling_min_tokens:
            raise ValueError(
                f"sampling_max_tokens {self.sampling_max_tokens} is below sampling_min_tokens"
                f" {self.sampling_min_tokens}"
            )
        self.updates  # noqa: B018 - checks the rest

    @property
    def updates(self) -> UpdateConfig:
        """The same as the loop takes it, whose steps are updates."""
        return UpdateConfig(
            batch_size=self.train_batch_size,
            micro_batch_size=self.micro_batch_size,
            learning_rate=self.learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            precision=self.precision,
            valid_interval=self.valid_interval * self.num_updates,
            best_by="valid_accuracy",
            best_is="highest",
            keep=self.keep,
            max_seconds=self.max_seconds,
        )

    @property
    def num_questions(self) -> int:
        """Questions in a rollout batch."""
        return self.rollout_batch_size // self.group_size

    @property
    def micro_batch_size(self) -> int:
        """Responses in a forward pass."""
        return self.train_batch_size // self.gradient_accumulation_steps

    @property
    def num_updates(self) -> int:
        """Optimizer steps on each rollout batch."""
        return self.epochs_per_rollout_batch * self.rollout_batch_size // self.train_batch_size

    @property
    def off_policy(self) -> bool:
        """Whether some updates train a policy that has moved on since the rollouts."""
        return self.num_updates > 1


def grpo_microbatch_train_step(
    policy_log_probs: Float[Tensor, "batch seq"],
    response_mask: Bool[Tensor, "batch seq"],
    gradient_accumulation_steps: float,
    loss_type: str,
    raw_rewards: Float[Tensor, "batch 1"] | None = None,
    advantages: Float[Tensor, "batch 1"] | None = None,
    old_log_probs: Float[Tensor, "batch seq"] | None = None,
    cliprange: float | None = None,
    *,
    normalize_constant: float | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Add a micro-batch's gradient: the mean over its responses of their loss.

    Args:
        gradient_accumulation_steps: micro-batches whose mean is wanted.
        normalize_constant: a response's loss is its tokens' sum divided by this, so that all tokens of a batch
            weigh the same; None divides by the response's length, so that all responses do. A response without
            tokens then makes the loss NaN.

    Returns:
        The loss, already divided by `gradient_accumulation_steps` and without gradient; and what the loss type
        tells of it: of clipping, `clip_fraction`, the share of the responses' tokens, too.

    Raises:
        ValueError: as of `compute_policy_gradient_loss`.
    """
    per_token, metadata = compute_policy_gradient_loss(
        policy_log_probs,
        loss_type,
        raw_rewards=raw_rewards,
        advantages=advantages,
        old_log_probs=old_log_probs,
        cliprange=cliprange,
    )
    if normalize_constant is None:
        per_response = masked_mean(per_token, response_mask, dim=-1)
    else:
        per_response = masked_normalize(per_token, response_mask, normalize_constant, dim=-1)
    loss = per_response.mean() / gradient_accumulation_steps
    loss.backward()
    if "clipped" in metadata:
        metadata["clip_fraction"] = masked_mean(metadata["clipped"].float(), response_mask)
    return loss.detach(), metadata


def compute_policy_gradient_loss(
    policy_log_probs: Float[Tensor, "batch seq"],
    loss_type: str,
    raw_rewards: Float[Tensor, "batch 1"] | None = None,
    advantages: Float[Tensor, "batch 1"] | None = None,
    old_log_probs: Float[Tensor, "batch seq"] | None = None,
    cliprange: float | None = None,
) -> tuple[Float[Tensor, "batch seq"], dict[str, Tensor]]:
    """Loss of each token by one of `LOSS_TYPES`; arguments that the type has no use for are not looked at.

    Raises:
        ValueError: no such type, or an argument that it needs is missing or misshapen.
    """
    given = {
        "raw_rewards": raw_rewards,
        "advantages": advantages,
        "old_log_probs": old_log_probs,
        "cliprange": cliprange,
    }
    needed = {
        "no_baseline": ("raw_rewards",),
        "reinforce_with_baseline": ("advantages",),
        "grpo_clip": ("advantages", "old_log_probs", "cliprange"),
        "grpo_no_clip": ("advantages", "old_log_probs"),
    }
    if loss_type not in needed:
        raise ValueError(f"loss_type is one of {', '.join(LOSS_TYPES)}; got {loss_type!r}")
    missing = [name for name in needed[loss_type] if given[name] is None]
    if missing:
        raise ValueError(f"{loss_type} needs {' and '.join(missing)}")
    if loss_type == "no_baseline":
        return compute_naive_policy_gradient_loss(raw_rewards, policy_log_probs), {}  # type: ignore[arg-type]
    if loss_type == "reinforce_with_baseline":
        return compute_naive_policy_gradient_loss(advantages, policy_log_probs), {}  # type: ignore[arg-type]
    if loss_type == "grpo_no_clip":
        return compute_grpo_no_clip_loss(advantages, policy_log_probs, old_log_probs, cliprange)  # type: ignore[arg-type]
    return compute_grpo_clip_loss(advantages, policy_log_probs, old_log_probs, cliprange)  # type: ignore[arg-type]


def compute_naive_policy_gradient_loss(
    raw_rewards_or_advantages: Float[Tensor, "batch 1"], policy_log_probs: Float[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq"]:
    """-A log pi of each token: its gradient is that of the expected reward, its value means nothing.

    Raises:
        ValueError: not one number a response.
    """
    _check_column(raw_rewards_or_advantages, policy_log_probs)
    return -raw_rewards_or_advantages * policy_log_probs


def compute_grpo_clip_loss(
    advantages: Float[Tensor, "batch 1"],
    policy_log_probs: Float[Tensor, "batch seq"],
    old_log_probs: Float[Tensor, "batch seq"],
    cliprange: float,
) -> tuple[Float[Tensor, "batch seq"], dict[str, Tensor]]:
    """-min(r A, clip(r, 1 - cliprange, 1 + cliprange) A) of each token, r = pi / pi_old.

    Args:
        old_log_probs: of the policy that sampled; carry no gradient.

    Returns:
        The loss; and of each token whether it is `clipped` (the clipped term is the smaller one, and there is no
        gradient), and its `ratio`.

    Raises:
        ValueError: not one advantage a response, or `old_log_probs` of another shape.

    Source: PPO, arXiv:1707.06347, equation 7; GRPO, arXiv:2402.03300, equation 3.
    """
    _check_column(advantages, policy_log_probs)
    ratio = _ratio(policy_log_probs, old_log_probs)
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange) * advantages
    metadata = {"clipped": (clipped < unclipped).detach(), "ratio": ratio.detach()}
    return -torch.minimum(unclipped, clipped), metadata


def compute_grpo_no_clip_loss(
    advantages: Float[Tensor, "batch 1"],
    policy_log_probs: Float[Tensor, "batch seq"],
    old_log_probs: Float[Tensor, "batch seq"],
    cliprange: float | None = None,
) -> tuple[Float[Tensor, "batch seq"], dict[str, Tensor]]:
    """-r A of each token: `compute_grpo_clip_loss` without the clipping, and with its `ratio`.

    Args:
        cliprange: also tell of each token whether it `would_clip` there; nothing is clipped.

    Raises:
        ValueError: not one advantage a response, or `old_log_probs` of another shape.
    """
    _check_column(advantages, policy_log_probs)
    ratio = _ratio(policy_log_probs, old_log_probs)
    metadata = {"ratio": ratio.detach()}
    if cliprange is not None:
        metadata["would_clip"] = (ratio.clamp(1 - cliprange, 1 + cliprange) * advantages < ratio * advantages).detach()
    return -ratio * advantages, metadata


def _ratio(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    # One row or column of old ones would be spread over the others, without an error.
    if old_log_probs.shape != log_probs.shape:
        raise ValueError(f"old_log_probs are {tuple(old_log_probs.shape)}, the policy's {tuple(log_probs.shape)}")
    return torch.exp(log_probs - old_log_probs.detach())


def _check_column(values: Tensor, log_probs: Tensor) -> None:
    # A flat (batch,) would be spread along the tokens, and without an error where there are as many.
    if values.shape != (log_probs.shape[0], 1):
        raise ValueError(f"need one number a response, ({log_probs.shape[0]}, 1); got {tuple(values.shape)}")
