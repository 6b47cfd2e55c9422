"""What finished experiments say, in sentences made from their numbers (first handout, written parts of section 7)."""

from __future__ import annotations

import itertools
import math
from typing import Any

from cs336.train.experiments import best_run


def comment_on_rates(outcomes: dict[str, dict[str, Any]]) -> str:
    """What a sweep of learning rates says: how it searched, the best rate, and how far the edge of stability is."""
    best = outcomes[best_run(outcomes)]
    rates = sorted(each["learning_rate"] for each in outcomes.values())
    sound = {each["learning_rate"]: each["valid_loss"] for each in outcomes.values() if not each["diverged"]}
    edge = min((each["learning_rate"] for each in outcomes.values() if each["diverged"]), default=None)
    factors = [upper / lower for lower, upper in itertools.pairwise(rates)] or [1.0]
    lines = [
        f"Searched upwards in steps of {min(factors):.2g} to {max(factors):.2g} times, from {rates[0]:g} to"
        f" {rates[-1]:g}: the loss is flat around its lowest point, so a finer grid would tell seeds apart, not rates."
        f" Best is {best['learning_rate']:g}, with {best['valid_loss']:.4f} nats."
    ]
    near = {rate: loss for rate, loss in sound.items() if 0 < abs(math.log2(rate / best["learning_rate"])) < 1.5}
    lines += [f"At {rate:g} it is {loss - best['valid_loss']:.4f} nats more." for rate, loss in sorted(near.items())]
    if edge is None:
        lines.append("No rate diverged: where the edge of stability lies is not known.")
    else:
        lines.append(
            f"The lowest rate that diverged is {edge:g}, {edge / best['learning_rate']:.2g} times the best. The largest"
            f" that did not is {max(sound):g}, and it ends {sound[max(sound)] - best['valid_loss']:.4f} nats above the"
            " best: the best rate lies below the edge of stability, not on it."
        )
    return " ".join(lines)


def comment_on_batches(best: dict[int, dict[str, Any]]) -> str:
    """What runs of several batch sizes say, each at its best rate.

    Args:
        best: batch size -> outcome.
    """
    full = {size: each for size, each in best.items() if not each["train"]["max_seconds"] and each["valid_loss"]}
    clocked = {size: each for size, each in best.items() if each["train"]["max_seconds"] and each["valid_loss"]}
    lines = [
        f"Batch {size:,} had {each['train']['max_seconds']:g} s, in which it saw {each['num_tokens']:,} tokens in"
        f" {each['num_steps']:,} steps: loss {each['valid_loss']:.4f}."
        for size, each in clocked.items()
    ]
    if full:
        lowest = min(full, key=lambda size: full[size]["valid_loss"])
        largest = max(full)
        lines.append(
            f"On equal numbers of tokens batch {lowest:,} ends lowest ({full[lowest]['valid_loss']:.4f}). Batch"
            f" {largest:,} makes {full[largest]['num_steps']:,} steps of them and ends"
            f" {full[largest]['valid_loss'] - full[lowest]['valid_loss']:.4f} nats higher: beyond the critical batch"
            " size a larger batch costs tokens without making its steps much better."
        )
    return " ".join(lines)


def comment_on_ablations(variants: dict[str, dict[str, Any]]) -> str:
    """What each part of the architecture is worth, beside the spread over seeds.

    Args:
        variants: as in an ablation study: name -> mean loss, spread, rate, how many diverged.
    """
    base = variants["baseline"]
    if base["valid_loss"] is None:
        return "The base model itself diverged in every seed: lower the learning rate before reading anything here."
    lines = [f"The base model ends at {base['valid_loss']:.4f} nats, with {base['spread']:.4f} between seeds."]
    for name, each in variants.items():
        if name == "baseline":
            continue
        if each["valid_loss"] is None:
            lines.append(f"{name} at rate {each['learning_rate']:.2g} diverged in {each['diverged']} seeds.")
            continue
        worse = each["valid_loss"] - base["valid_loss"]
        spread = math.hypot(each["spread"], base["spread"])
        told = "within the spread of seeds" if abs(worse) <= 2 * spread else "more than the seeds differ"
        lines.append(
            f"{name} at rate {each['learning_rate']:.2g} costs {worse:+.4f} nats, {told}"
            f" ({each['diverged']} seeds diverged)."
        )
    return " ".join(lines)
