"""What the studies on several processes measure: the handout's settings, and what a dry run changes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from cs336.model.sizes import CONTEXT_LENGTH, SIZES, find_size
from cs336.model.transformer import ModelConfig

FULL_STEP, FULL_STEP_WITH_MASTERS = "full step", "full step, fp32 masters"  # a row's `work`


@dataclass(frozen=True)
class StepSetting:
    """What is trained, and how it is timed.

    Attributes:
        name: of the shape, for tables.
        batch_size: sequences of one rank.
        precision: "float32", or "bfloat16" for products in bf16 over fp32 weights and gradients.
        layers_per_segment: activation checkpointing; 0 keeps all.
        num_warmup, num_steps: of the timing, in each round.
        timeout_seconds: of one cell.
    """

    name: str
    model: ModelConfig
    batch_size: int = 2
    precision: str = "bfloat16"
    layers_per_segment: int = 0
    num_warmup: int = 5
    num_steps: int = 10
    timeout_seconds: float = 300.0

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f'precision is "float32" or "bfloat16", got {self.precision!r}')

    def described(self) -> dict[str, Any]:
        """What a row says of it; the model by its fields too."""
        return {
            "size": self.name,
            "batch_size": self.batch_size,
            "context_length": self.model.context_length,
            "precision": self.precision,
            "layers_per_segment": self.layers_per_segment,
            "steps": [self.num_warmup, self.num_steps],
            "model": asdict(self.model),
        }


@dataclass(frozen=True)
class ParallelConfig:
    """What the studies of parallel training measure, on which machine.

    Attributes:
        device: "cuda" for NCCL on as many GPUs as there are ranks, "cpu" for Gloo.
        size: of the handout's shapes; `smaller_size` is taken as well where it does not fit.
        context_length: 0 takes the handout's.
        batch_size: sequences of one rank: the handout's 4 over two ranks.
        model: in place of a named size.
        all_reduce_bytes: of the tensors whose all-reduce is timed.
        process_counts: numbers of processes for those; on GPUs, those that there are GPUs for.
        bucket_sizes_mb: of the bucketed form.
        num_warmup, num_steps: of the timing, in each round: the handout's protocol.
        num_rounds: how often each contender is measured, by turns with the others.

    Source: CS336, assignment 2, editions of 2025 and 2026.
    """

    device: str = "cuda"
    size: str = "xl"
    smaller_size: str = "large"
    model: ModelConfig | None = None
    context_length: int = 0
    batch_size: int = 2
    precision: str = "bfloat16"
    layers_per_segment: int = 0
    world_size: int = 2
    num_warmup: int = 5
    num_steps: int = 10
    num_rounds: int = 3
    timeout_seconds: float = 300.0
    all_reduce_bytes: tuple[int, ...] = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
    process_counts: tuple[int, ...] = (2, 4, 6)
    bucket_sizes_mb: tuple[float, ...] = (1.0, 10.0, 100.0, 1_000.0)

    @property
    def num_calls(self) -> int:
        """All-reduces of a size that are timed: as many as steps of a contender."""
        return self.num_rounds * self.num_steps

    def setting(self, size: str = "") -> StepSetting:
        """The step of the size that is studied, or of another."""
        name = size or self.size
        if self.model is not None and not size:
            model, name = self.model, "own"
        else:
            model = find_size(name)
        if self.context_length or self.model is None:
            model = replace(model, context_length=self.context_length or CONTEXT_LENGTH)
        return StepSetting(
            name,
            model,
            batch_size=self.batch_size,
            precision=self.precision,
            layers_per_segment=self.layers_per_segment,
            num_warmup=self.num_warmup,
            num_steps=self.num_steps,
            timeout_seconds=self.timeout_seconds,
        )


@dataclass(frozen=True)
class FullStepConfig:
    """The step, and how it is timed.

    Attributes:
        device: "cuda" for NCCL on GPUs, "cpu" for Gloo.
        num_sequences: of the whole batch; each rank has an equal part.
        dtype: of all that is computed and sent; of weights, gradients and states too, unless there are fp32 masters.
        fp32_masters: what the optimizer sees, slices of weights, gradients and moments, is in fp32.
        layers_per_segment: activation checkpointing; 0 keeps all.
        chunk_tokens: whose logits are held at once.
        attention: kernel, see `CausalMultiHeadSelfAttention.use_kernel`.
        keep_attention: do not run attention again, and keep its outputs.
        fused: norms, rotations, gates, the loss and AdamW by our Triton kernels; of all but AdamW's the memory plan
            does not know that they keep less.
        compiled: norms and rotations by `torch.compile`, which keeps less of them than the memory plan says.
        warmup_ms, rep_ms: of the timing, as `triton.testing.do_bench` takes them.
    """

    device: str = "cuda"
    model: ModelConfig = SIZES["8b"]
    world_size: int = 2
    num_sequences: int = 2
    dtype: str = "bfloat16"
    fp32_masters: bool = False
    layers_per_segment: int = 1
    chunk_tokens: int = 2_048
    attention: str = "flash"
    keep_attention: bool = False
    fused: bool = True
    compiled: bool = False
    warmup_ms: float = 10_000.0
    rep_ms: float = 30_000.0
    timeout_seconds: float = 590.0  # the rules: ten minutes from empty caches

    def __post_init__(self) -> None:
        if self.num_sequences % self.world_size:
            raise ValueError(f"{self.num_sequences} sequences do not divide over {self.world_size} ranks")
        if self.fp32_masters and self.dtype == "float32":
            raise ValueError("fp32 masters stand beside a narrower dtype; float32 has its weights in fp32 already")

    def described(self) -> dict[str, Any]:
        """What a row says of it."""
        left_out = ("timeout_seconds", "fp32_masters")
        work = FULL_STEP_WITH_MASTERS if self.fp32_masters else FULL_STEP
        return {"work": work} | {key: value for key, value in asdict(self).items() if key not in left_out}

    @property
    def slice_dtype(self) -> str:
        """Of a rank's slices of weights, gradients and states."""
        return "float32" if self.fp32_masters else self.dtype

    @property
    def tokens_per_rank(self) -> int:
        """Of one step."""
        return self.num_sequences // self.world_size * self.model.context_length
