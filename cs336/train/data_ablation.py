"""What each stage of the data is worth: one model on the text before and after it (CS336, assignment 4)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from cs336.model.transformer import ModelConfig
from cs336.train.experiments import Run, within_budget
from cs336.train.loop import TrainConfig

UNFILTERED, FILTERED, DEDUPLICATED = VARIANTS = ("unfiltered", "filtered", "deduplicated")
PAIRS = ((UNFILTERED, FILTERED), (FILTERED, DEDUPLICATED), (UNFILTERED, DEDUPLICATED))  # before, after

_NUM_EVALUATIONS = 10  # points of a validation curve
_SEQUENCES_PER_EVALUATION = 64  # in each but the last, which takes all of the held-out text
# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom.
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True, kw_only=True)
class DataAblationConfig:
    """How the variants of the data are compared.

    Attributes:
        num_tokens: that each run trains on, whatever its variant holds: a small one is repeated more often.
        num_seeds: runs of each variant; a seed begins with the same weights in all of them.
    """

    num_tokens: int
    num_seeds: int = 3

    def __post_init__(self) -> None:
        if self.num_seeds < 1:
            raise ValueError(f"num_seeds must be at least 1, got {self.num_seeds}")


@dataclass(frozen=True, kw_only=True)
class VariantRun(Run):
    """A training run on one variant of the data."""

    variant: str


def data_ablation_runs(model: ModelConfig, train: TrainConfig, config: DataAblationConfig) -> dict[str, VariantRun]:
    """The preset's model and training on each variant, with each seed; only the text differs."""
    budgeted = within_budget(train, config.num_tokens, model.context_length)
    budgeted = replace(
        budgeted,
        valid_interval=max(1, budgeted.num_steps // _NUM_EVALUATIONS),
        valid_batches=max(1, _SEQUENCES_PER_EVALUATION // budgeted.batch_size),
    )
    return {
        f"{variant}-seed-{seed}": VariantRun(
            model=model, train=budgeted, num_tokens=config.num_tokens, seed=seed, variant=variant
        )
        for variant in VARIANTS
        for seed in range(config.num_seeds)
    }


class Difference(NamedTuple):
    """How a loss, or another measure, changed between two variants, over seeds.

    Attributes:
        mean: after less before; of losses in nats, where below 0 is better.
        half_width: of the 95 % interval around it; None of one seed, which says nothing of chance.
        num_seeds: pairs of runs.
    """

    mean: float
    half_width: float | None
    num_seeds: int

    @property
    def is_told_from_chance(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def paired_difference(before: Mapping[int, float], after: Mapping[int, float]) -> Difference:
    """The mean difference of two variants' losses, or other measures, and its 95 % interval, by Student's t over the
    seeds' differences.

    A pair of runs shares its seed, so its first weights. The interval is about the luck of seeds, not about
    which pages a crawl happens to hold.

    Args:
        before, after: by seed.

    Raises:
        ValueError: no seed is in both.
    """
    differences = [after[seed] - loss for seed, loss in before.items() if seed in after]
    if not differences:
        raise ValueError(f"no seed in common: {sorted(before)} and {sorted(after)}")
    num = len(differences)
    half_width = _t_95(num - 1) * statistics.stdev(differences) / math.sqrt(num) if num > 1 else None
    return Difference(statistics.fmean(differences), half_width, num)


def _t_95(freedom: int) -> float:
    if freedom <= len(_T_95):
        return _T_95[freedom - 1]
    # The normal quantile and the first terms of the expansion around it: 0.1 % too low at 11, less beyond.
    z = statistics.NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def losses_by_seed(outcomes: Mapping[str, Mapping[str, Any]], variant: str) -> dict[int, float]:
    """Final losses of a variant's runs that did not diverge.

    Args:
        outcomes: by run name, as `write_outcome` wrote them.
    """
    return {
        each["seed"]: each["valid_loss"]
        for name, each in outcomes.items()
        if name.startswith(f"{variant}-seed-") and not each["diverged"]
    }


def comment_on_data(
    variants: Mapping[str, Mapping[str, Any]], differences: Mapping[tuple[str, str], Difference], num_tokens: int
) -> str:
    """What the comparison says, in sentences made from its numbers.

    Args:
        variants: name -> `num_tokens`, `epochs`, `share_of_english` (of the bytes whose language is known; None
            where none is), `num_languages`.
        differences: of pairs (before, after).
        num_tokens: each run trained on.
    """
    lines = [f"Every run trains on {num_tokens:,} tokens, so a smaller variant is read more often:"]
    lines.append(", ".join(f"{name} {each['epochs']:.2f} times" for name, each in variants.items()) + ".")
    first = variants[UNFILTERED]
    if first["share_of_english"] is not None:
        share, others = first["share_of_english"], first["num_languages"] - 1
        lines.append(
            f"The held-out text is English. Of the unfiltered text {share:.0%} is, by bytes; the rest is in {others}"
            " other languages, as the filter tells them. They teach little English and fill part of the same number of"
            " tokens, so part of what filtering gains is the language."
        )
    lines += [_of_pair(before, after, each) for (before, after), each in differences.items()]
    lines.append(
        "Intervals are 95 %, by Student's t over the seeds; they do not cover the choice of pages, model size or rate,"
        " which is the preset's for all."
    )
    return " ".join(lines)


def _of_pair(before: str, after: str, each: Difference) -> str:
    better = "lowers" if each.mean < 0 else "raises"
    said = f"From {before} to {after}: {better} the loss by {abs(each.mean):.4f}"
    if each.half_width is None:
        return f"{said} nats, with one seed: no interval."
    told = "told from chance" if each.is_told_from_chance else "not told from chance"
    return f"{said} ± {each.half_width:.4f} nats, {told} with {each.num_seeds} seeds."
