"""Win rates against a reference model, plain and length-controlled.

Source: Dubois et al. 2024, "Length-Controlled AlpacaEval", arXiv:2404.04475. As there, the log-odds of a
win are a sum of three terms: how good the model is, how much longer its output is than the reference's,
and how hard the instruction is; the length-controlled rate is what the first and third predict for
outputs of equal length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cs336.evals.report import Z_95, wilson_interval

# Penalty on the weights of length and difficulty, in squared logits. The paper regularises length too, so
# that cutting outputs short earns little, but by cross-validation. With 1, and difficulties from four models'
# stored preferences, Claude Instant 1.2, OpenHermes 2.5 and Gemma 7B get 26.7, 15.1 and 9.9 %; the public
# leaderboard, whose difficulties come from many more models, has 25.6, 16.3 and 10.4 %.
_RIDGE = 1.0
_NEARLY_NONE = 1e-6  # on a model's own term: keeps it finite when every pair goes one way
_NUM_RESAMPLES = 200


def win_rate(preferences: Sequence[float]) -> dict[str, float]:
    """Mean share of wins, a draw counting half, and its 95 % interval.

    The interval is that of a mean; where all pairs went alike, which leaves that nothing to go by, it is Wilson's.

    Args:
        preferences: 1.0 where the reference won, 2.0 where the model did, or between; 0, as older
            annotation files have it, and 1.5 are draws.

    Returns:
        `win_rate`, `win_rate_low`, `win_rate_high`: shares; `num_wins`, `num_draws`.

    Raises:
        ValueError: no preferences, or one outside 1 to 2.
    """
    wins = _wins(preferences)
    mean = float(wins.mean())
    half = Z_95 * float(wins.std(ddof=1)) / len(wins) ** 0.5 if len(wins) > 1 else 0.0
    low, high = (mean - half, mean + half) if half else wilson_interval(round(mean * len(wins)), len(wins))
    return {
        "win_rate": mean,
        "win_rate_low": max(0.0, low),
        "win_rate_high": min(1.0, high),
        "num_wins": int((wins > 0.5).sum()),
        "num_draws": int((wins == 0.5).sum()),
    }


def length_controlled_win_rate(
    preferences: Sequence[float],
    output_lengths: Sequence[int],
    reference_lengths: Sequence[int],
    *,
    difficulty: Sequence[float] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """The win rate that outputs as long as the reference's would have had.

    Args:
        preferences: as in `win_rate`.
        output_lengths, reference_lengths: characters.
        difficulty: of each instruction, from `fit_difficulty`; None leaves that term out.
        seed: of the resampling behind the interval.

    Returns:
        `lc_win_rate` with its 95 % interval `lc_win_rate_low`, `lc_win_rate_high` (percentiles over 200
        resamples of the instructions), and `length_weight`: logits that outputs much longer gain.

    Raises:
        ValueError: no preferences, one outside 1 to 2, or other numbers of lengths or difficulties.
    """
    wins = _wins(preferences)
    hardness = np.zeros(len(wins)) if difficulty is None else np.asarray(difficulty, dtype=float)
    lengths = _length_term(output_lengths, reference_lengths)
    if not len(wins) == len(lengths) == len(hardness):
        raise ValueError(
            f"{len(wins)} preferences, {len(lengths)} lengths, {len(hardness)} difficulties; give one each"
        )
    rate, weight = _controlled(wins, lengths, hardness)
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(len(wins), size=len(wins)) for _ in range(_NUM_RESAMPLES)]
    low, high = np.percentile([_controlled(wins[i], lengths[i], hardness[i])[0] for i in drawn], [2.5, 97.5])
    return {
        "lc_win_rate": rate,
        "lc_win_rate_low": float(low),
        "lc_win_rate_high": float(high),
        "length_weight": weight,
    }


def fit_difficulty(annotations: Mapping[str, tuple[Sequence[float], Sequence[int], Sequence[int]]]) -> np.ndarray:
    """How hard it is to win each instruction, from the preferences of several models against one reference.

    Args:
        annotations: model -> its preferences, output lengths and reference lengths, all models on the same
            instructions in the same order.

    Returns:
        Logits a win is easier (positive) or harder than the average instruction.

    Raises:
        ValueError: fewer than two models, or on different numbers of instructions.
    """
    counts = {len(preferences) for preferences, _, _ in annotations.values()}
    if len(annotations) < 2 or len(counts) != 1:
        raise ValueError(f"{len(annotations)} models on {counts} instructions; give two or more on the same ones")
    (count,), num_models = counts, len(annotations)
    design = np.zeros((num_models * count, 2 * num_models + count))
    for place, (_, output_lengths, reference_lengths) in enumerate(annotations.values()):
        rows = slice(place * count, (place + 1) * count)
        design[rows, 2 * place] = 1
        design[rows, 2 * place + 1] = _length_term(output_lengths, reference_lengths)
        design[rows, 2 * num_models :] = np.eye(count)
    wins = np.concatenate([_wins(preferences) for preferences, _, _ in annotations.values()])
    penalty = np.concatenate([np.tile([_NEARLY_NONE, _RIDGE], num_models), np.full(count, _RIDGE)])
    return _logistic_weights(design, wins, penalty)[2 * num_models :]


def _wins(preferences: Sequence[float]) -> np.ndarray:
    values = np.asarray(preferences, dtype=float)
    values = np.where(values == 0, 1.5, values)
    if not len(values) or not ((values >= 1) & (values <= 2)).all():
        raise ValueError(f"{len(values)} preferences, not all between 1 and 2; leave out what was not judged")
    return values - 1


def _length_term(output_lengths: Sequence[int], reference_lengths: Sequence[int]) -> np.ndarray:
    """Difference of lengths in its standard deviations, bent to -1 ... 1: outliers must not rule the fit."""
    difference = np.asarray(output_lengths, dtype=float) - np.asarray(reference_lengths, dtype=float)
    spread = difference.std(ddof=1) if len(difference) > 1 else 0.0
    return np.tanh(difference / spread) if spread > 0 else np.zeros(len(difference))


def _controlled(wins: np.ndarray, lengths: np.ndarray, hardness: np.ndarray) -> tuple[float, float]:
    design = np.stack([np.ones(len(wins)), lengths, hardness], axis=1)
    quality, length, hard = _logistic_weights(design, wins, np.array([_NEARLY_NONE, _RIDGE, _RIDGE]))
    return float((1 / (1 + np.exp(-(quality + hard * hardness)))).mean()), float(length)


def _logistic_weights(design: np.ndarray, wins: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Weights of a ridge-penalised logistic regression on shares of wins, by Newton's method.

    Raises:
        ValueError: it did not converge.
    """
    weights = np.zeros(design.shape[1])
    for _ in range(100):
        chance = 1 / (1 + np.exp(-(design @ weights)))
        slope = design.T @ (chance - wins) + penalty * weights
        curvature = (design.T * (chance * (1 - chance))) @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, slope)
        # Far steps overshoot where the curve is flat; the direction is right, so they are shortened.
        weights = weights - step * min(1.0, 5.0 / max(np.abs(step).max(), 1e-12))
        if np.abs(step).max() < 1e-8:
            return weights
    raise ValueError("the logistic regression did not converge; check the preferences")
