"""What the studies on one GPU measure: the handout's sizes, contexts and counts, or fewer of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cs336.profiling.step_times import MEASURED_STEPS, WARMUP_STEPS, parse_size


@dataclass(frozen=True)
class ProfilingConfig:
    """The studies' grids; the defaults are those of CS336's assignment 2, both editions.

    Sizes are names of `cs336.model.sizes.SIZES`, or D_MODELxD_FFxLAYERSxHEADS.

    Attributes:
        sizes: of the tables by size.
        context_length, batch_size: where a study does not vary them.
        warmup_steps, measured_steps: of each cell.
        warmup_counts, warmup_sizes: of the study of warm-up, each cell in a process of its own.
        compile_sizes, compile_precisions: compiled beside eager; compiling takes a second or two a layer and mode.
        profile_contexts: at which every size is profiled.
        long_sizes: go on doubling the context to the largest that fits, `longest_context` at most.
        memory_size, memory_contexts: whose memory is recorded over time.
        recompute_size, recompute_context, recompute_segments: activation checkpointing, layers a segment.
        attention_batch_size, attention_widths, attention_lengths: of single-head attention; lengths then double until
            memory ends, `longest_attention` at most.
        attention_steps: forward passes, and backward passes, of each cell.
    """

    sizes: tuple[str, ...] = ("small", "medium", "large", "xl", "10b", "xl-2025")
    context_length: int = 512
    batch_size: int = 4
    warmup_steps: int = WARMUP_STEPS
    measured_steps: int = MEASURED_STEPS
    warmup_counts: tuple[int, ...] = (0, 1, 2, 5)
    warmup_sizes: tuple[str, ...] = ("small", "large")
    compile_sizes: tuple[str, ...] = ("small", "medium", "large", "xl")
    compile_precisions: tuple[str, ...] = ("float32",)
    profile_contexts: tuple[int, ...] = (128, 256, 512, 1_024)
    long_sizes: tuple[str, ...] = ("small", "xl")
    longest_context: int = 16_384
    memory_size: str = "xl"
    memory_contexts: tuple[int, ...] = (128, 256, 512, 2_048)
    recompute_size: str = "xl"
    recompute_context: int = 2_048
    recompute_segments: tuple[int, ...] = (1, 2, 4, 8)
    attention_batch_size: int = 8
    attention_widths: tuple[int, ...] = (16, 32, 64, 128)
    attention_lengths: tuple[int, ...] = (256, 1_024, 4_096, 8_192, 16_384)
    longest_attention: int = 131_072
    attention_steps: int = 100

    def __post_init__(self) -> None:
        for size in {*self.sizes, *self.warmup_sizes, *self.compile_sizes, *self.long_sizes}:
            parse_size(size)
        for size in (self.memory_size, self.recompute_size):
            parse_size(size)
        self._check_subsets()

    def of_size(self, size: str) -> ProfilingConfig:
        """The part of the grids that concerns one size."""
        only: dict[str, Any] = {
            name: tuple(each for each in getattr(self, name) if each == size)
            for name in ("sizes", "warmup_sizes", "compile_sizes", "long_sizes")
        }
        return replace(self, **only)

    def _check_subsets(self) -> None:
        unknown = {*self.warmup_sizes, *self.compile_sizes, *self.long_sizes} - {*self.sizes}
        if unknown:
            raise ValueError(f"sizes must hold {', '.join(sorted(unknown))}, which a study of its own names")


TINY_PROFILING = ProfilingConfig(  # seconds on a CPU: to see that it runs, not to learn from
    sizes=("16x32x2x2", "32x64x2x4"),
    context_length=16,
    batch_size=2,
    warmup_steps=1,
    measured_steps=2,
    warmup_counts=(0, 1),
    warmup_sizes=("16x32x2x2",),
    compile_sizes=(),
    profile_contexts=(16, 32),
    long_sizes=("16x32x2x2",),
    longest_context=64,
    memory_size="32x64x2x4",
    memory_contexts=(16, 32),
    recompute_size="32x64x2x4",
    recompute_context=32,
    recompute_segments=(1, 2),
    attention_batch_size=2,
    attention_widths=(16,),
    attention_lengths=(16, 32),
    longest_attention=64,
    attention_steps=2,
)
