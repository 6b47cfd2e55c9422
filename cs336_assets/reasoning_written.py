"""The handout's questions on reasoning that are answered in words: argued, then with the numbers of our own runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import stdev

from cs336.posttrain.config import GrpoRun, ReasoningConfig, grpo_runs
from cs336.posttrain.curves import by_update, mean_of, moved, reached
from cs336.posttrain.length_normalization import ARGUMENT, LENGTHS, example
from cs336.posttrain.problems import ProblemsConfig
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.crawl import page_table
from cs336_assets.experiments import number_shown
from cs336_assets.reasoning_failures import READINGS
from cs336_assets.reasoning_runs import Run, draw, on_scores, pair_of, runs_of, side_by_side

_written = asset(group="reasoning", kinds={"matplotlib"}, owner="team:posttrain", watches=READINGS.version)


# ---- length normalisation


@_written
def length_normalization(
    step: Step,
    grpo_model: list[Path],
    reasoning_scores: list[Path],
    reasoning: ReasoningConfig,
    problems: ProblemsConfig,
) -> Metadata:
    """A response's loss over its own length or over a constant: the argument, the handout's example, and two runs.

    The runs are the preset's own GRPO and the one that differs from it in the normalisation alone.
    """
    ways = {"own length (`masked_mean`)": example(None), "constant 7 (`masked_normalize`)": example(7.0)}
    columns = ["divided by", *(f"loss of {length} tokens" for length in LENGTHS)]
    columns += [f"gradient of one of {length} tokens" for length in LENGTHS]
    numbers = [[name, *(f"{each:.3f}" for each in (*way.losses, *way.token_gradients))] for name, way in ways.items()]
    page = [
        ARGUMENT.strip(),
        "**In numbers**, by the step that trains (advantage 2, ratio 1):",
        page_table(columns, numbers),
    ]
    runs, settings = runs_of(grpo_model, reasoning_scores), grpo_runs(reasoning, problems)
    pair = pair_of(runs, settings, "normalize_constant") if runs else None
    if pair is None:
        page.append("**In our runs.** No run of this preset differs from its GRPO in the normalisation alone.")
        return READINGS.finish(step, "length", page, read=numbers)
    own, constant = sorted(pair, key=lambda run: settings[run.name].config.normalize_constant is not None)
    page += [
        "**In our runs**",
        side_by_side([own, constant]),
        *_on_lengths(own, constant, settings[constant.name].config.normalize_constant or 1.0),
        _on_clipped_norms([own, constant], settings[own.name].config.max_grad_norm),
        on_scores(constant, own),
    ]
    drawn = draw(step, [own, constant], "valid_accuracy", "grad_norm", "mean_length_correct", "mean_length_incorrect")
    return READINGS.finish(step, "length", page, read=page) | drawn


@check(asset="length_normalization")
def the_example_is_the_handouts(length_normalization: Path) -> tuple[bool, Metadata]:
    """The step that trains gives the handout's figures: 2 and 2, 0.25 and 0.143; with a constant 1.143 and 2, 0.143."""
    found = [*example(None), *example(7.0)]
    expected = [(2, 2), (1 / 4, 1 / 7), (8 / 7, 2), (1 / 7, 1 / 7)]
    pairs = zip(found, expected, strict=True)
    worst = max(abs(a - b) for some, others in pairs for a, b in zip(some, others, strict=True))
    return worst < 1e-5, {"largest_error": worst}


def _on_lengths(own: Run, constant: Run, normalize_constant: float) -> list[str]:
    """What the argument expects of gradients and lengths, and what came."""
    length = mean_of(own.rows, "mean_length") or 0.0
    norms = [mean_of(run.rows, "grad_norm") or 0.0 for run in (own, constant)]
    lines = [
        f"Responses have {length:.0f} tokens on average and the constant is {normalize_constant:.0f}, so gradients over"
        f" the constant should be about {length / normalize_constant:.2f} times as large. Measured:"
        f" {norms[1]:.3g} against {norms[0]:.3g}, {norms[1] / norms[0]:.2f} times; relative to their mean they vary by"
        f" {_variation(own):.2f} over the own length and {_variation(constant):.2f} over the constant (standard"
        " deviation over updates)."
    ]
    grown = {}
    for run in (own, constant):
        wrong, right = moved(run.rows, "mean_length_incorrect"), moved(run.rows, "mean_length_correct")
        if wrong is not None and right is not None:
            grown[run.name] = wrong.change - right.change
            lines.append(
                f"`{run.name}`: wrong responses went from {wrong.first:.0f} to {wrong.last:.0f} tokens, right ones from"
                f" {right.first:.0f} to {right.last:.0f}."
            )
    if len(grown) == 2:
        as_argued = grown[own.name] > max(0.0, grown[constant.name])
        lines.append(
            "Over the own length wrong responses gained on right ones, and more than over the constant: what the"
            " argument expects, of one run each."
            if as_argued
            else "Wrong responses did not gain more on right ones over the own length than over the constant: the bias"
            " that the argument expects is not seen in these runs."
        )
    return lines


def _variation(run: Run) -> float:
    norms = [row["grad_norm"] for row in run.rows if row.get("grad_norm") is not None]
    return stdev(norms) / (sum(norms) / len(norms)) if len(norms) > 1 and any(norms) else 0.0


def _on_clipped_norms(runs: Sequence[Run], limit: float) -> str:
    shares = []
    for run in runs:
        norms = [row["grad_norm"] for row in run.rows if row.get("grad_norm") is not None]
        shares.append(f"{sum(norm > limit for norm in norms) / len(norms):.0%} of the updates of `{run.name}`")
    return f"Gradients are scaled down to a norm of {limit:g} in {' and '.join(shares)}."


# ---- Expert Iteration and SFT


@_written
def expert_iteration_comparison(
    step: Step,
    sft_model: list[Path],
    longer_sft_model: list[Path],
    expert_iteration_model: list[Path],
    reasoning_scores: list[Path],
    reasoning: ReasoningConfig,
) -> Metadata:
    """Expert Iteration beside SFT: accuracy, entropy and length, and how these move from round to round."""
    sft, longer, expert = (
        runs_of(folders, reasoning_scores) for folders in (sft_model, longer_sft_model, expert_iteration_model)
    )
    page = [
        "**Expected.** SFT imitates traces that another wrote; Expert Iteration imitates the policy's own responses"
        " that were right. It can learn no way of thinking that the policy never shows, but of those that it shows it"
        " moves to the ones that are right more often, without a trace. As it trains on its own samples, its entropy"
        " falls with each round."
    ]
    if not expert:
        page.append("**In our runs.** This preset has no Expert Iteration.")
        return READINGS.finish(step, "expert_iteration", page, read=page)
    shown = [*list(sft.values())[:1], *longer.values(), *expert.values()]
    first = next(iter(expert.values()))
    started = {"": "the start policy", "sft": "SFT"}[reasoning.expert_iteration_from]
    page += [
        "**In our runs**",
        side_by_side(shown),
        f"`{first.name}` starts from {started}. Entropy is that of the tokens trained on: of SFT the traces', of Expert"
        " Iteration the policy's own, so that rounds compare with one another and not with SFT.",
        *(on_scores(first, other) for other in shown if other.name not in expert),
        "**Round by round**",
        _rounds(first),
        _on_rounds(first),
    ]
    drawn = draw(step, list(expert.values()), "valid_accuracy", "reward", "token_entropy", "mean_length")
    return READINGS.finish(step, "expert_iteration", page, read=page) | drawn


def _rounds(run: Run) -> str:
    columns = ["step", "num_sampled", "num_kept", "num_solved", "valid_accuracy", "token_entropy"]
    columns += ["mean_length", "mean_length_correct", "mean_length_incorrect"]
    return page_table(columns, [[number_shown(row.get(column)) for column in columns] for row in run.rows])


def _on_rounds(run: Run) -> str:
    rounds = [row for row in run.rows if row["step"]]
    right = [row["answer_reward"] for row in rounds]
    before, after = run.rows[0]["valid_accuracy"], run.rows[-1]["valid_accuracy"]
    when = (
        "in its only round"
        if len(rounds) == 1
        else f"in the first of {len(rounds)} rounds, {right[-1]:.1%} in the last"
    )
    sentences = [
        f"Of the responses {right[0]:.1%} were right {when}; accuracy on validation went from {before:.1%} to"
        f" {after:.1%}."
    ]
    entropy = moved(rounds, "token_entropy")
    if entropy is not None and len(rounds) > 1:
        sentences.append(f"Entropy went from {entropy.first:.4f} to {entropy.last:.4f} nats a token.")
    length, of_wrong = (rounds[0].get(f"mean_length_{name}") for name in ("correct", "incorrect"))
    if length is not None and of_wrong is not None:
        kind = "longer" if length > of_wrong else "shorter"
        sentences.append(
            f"In the first round right responses had {length:.0f} tokens, wrong ones {of_wrong:.0f}: what is kept is"
            f" the {kind} kind."
        )
    return " ".join(sentences)


# ---- off-policy


@_written
def off_policy_reasoning(
    step: Step,
    grpo_model: list[Path],
    reasoning_scores: list[Path],
    reasoning: ReasoningConfig,
    problems: ProblemsConfig,
) -> Metadata:
    """Several updates on each rollout batch, clipped and not, beside one: what ratios and clipped shares show.

    Compared with on-policy GRPO by rollout batches and by the clock.
    """
    runs, settings = runs_of(grpo_model, reasoning_scores), grpo_runs(reasoning, problems)
    off = {name: run for name, run in runs.items() if settings[name].config.off_policy}
    page = [
        "**Expected.** Sampling takes most of a step, so several updates on each rollout batch use it better. From the"
        " second update on, the policy is not the one that sampled; the ratio r of their probabilities corrects for it,"
        " token by token and not for the texts before them, with a variance that grows with the distance. Clipping"
        " takes the gradient from tokens that moved beyond 1 ± cliprange in their advantage's direction: it bounds how"
        " far one batch's updates go, at the cost of a biased gradient. The share clipped is 0 in a batch's first"
        " update and grows with each; a large one says that the rate or the number of updates is too high."
    ]
    if not off:
        page.append("**In our runs.** This preset has no off-policy run.")
        return READINGS.finish(step, "off_policy", page, read=page)
    on = next((run for name, run in runs.items() if name not in off), None)
    shown = [*([on] if on else []), *off.values()]
    page += [
        "**In our runs**",
        side_by_side(shown),
        "**By update of a batch**, means over all batches",
        _by_update(list(off.values()), settings),
        *(_on_ratios(run, settings[run.name]) for run in off.values()),
        *(_on_speed(run, on) for run in off.values() if on),
        *_on_clipping(off, settings),
    ]
    columns = ("valid_accuracy", "token_entropy", "mean_length", "grad_norm")
    drawn = draw(step, shown, *columns, "clip_fraction", "would_clip_fraction", "ratio_max")
    return READINGS.finish(step, "off_policy", page, read=page) | drawn


def _share_column(settings: GrpoRun) -> str:
    return "clip_fraction" if settings.config.loss_type == "grpo_clip" else "would_clip_fraction"


def _by_update(runs: Sequence[Run], settings: Mapping[str, GrpoRun]) -> str:
    table = []
    for run in runs:
        share = by_update(run.rows, _share_column(settings[run.name]))
        means, maxima = by_update(run.rows, "ratio_mean"), by_update(run.rows, "ratio_max")
        for place in range(max(map(len, (share, means, maxima)))):
            told = [values[place] if values else None for values in (means, maxima, share)]
            table.append([f"`{run.name}`", place + 1, *map(number_shown, told)])
    return page_table(["run", "update", "ratio, mean", "ratio, greatest", "share clipped (or would be)"], table)


def _on_ratios(run: Run, settings: GrpoRun) -> str:
    column = _share_column(settings)
    share, places = moved(run.rows, column), by_update(run.rows, column)
    if share is None or not places:
        return f"`{run.name}`: this run's rows hold no share of clipped tokens."
    clipped = "are clipped" if column == "clip_fraction" else "would be clipped"
    sentence = (
        f"`{run.name}`: {places[0]:.2%} of the tokens {clipped} in a batch's first update and {places[-1]:.2%} in its"
        f" last; over the run the share went from {share.first:.2%} to {share.last:.2%}."
    )
    greatest = [row["ratio_max"] for row in run.rows if row.get("ratio_max") is not None]
    return sentence + (f" The greatest ratio of any token was {max(greatest):.3g}." if greatest else "")


def _on_speed(run: Run, on: Run) -> str:
    """By rollout batches and by the clock, to the on-policy run's best validation."""
    best = max(row["valid_accuracy"] for row in on.rows if "valid_accuracy" in row)
    theirs, ours = reached(on.rows, best), reached(run.rows, best)
    assert theirs is not None
    if not theirs.steps:
        return f"`{on.name}` never rose above where both start, {best:.1%}: there is no speed to compare."
    there = f"the best validation of `{on.name}`, {best:.1%} after {theirs.steps} batches and {theirs.seconds:.0f} s"
    if ours is None:
        return f"`{run.name}` never reached {there}."
    return f"`{run.name}` reached {there}, after {ours.steps} batches and {ours.seconds:.0f} s."


def _on_clipping(off: Mapping[str, Run], settings: Mapping[str, GrpoRun]) -> list[str]:
    """Each run without clipping beside the one that is the same with it."""
    lines = []
    for name, run in off.items():
        clipped = replace(settings[name].config, loss_type="grpo_clip")
        twin = next((other for other in off if settings[other].config == clipped), name)
        if twin != name:
            lines.append(f"Clipping alone, {on_scores(run, off[twin])}")
    return lines or ["Clipping alone: this preset has no run that differs from another in the clipping alone."]


# ---- the prompt


@_written
def prompt_ablation(
    step: Step,
    grpo_model: list[Path],
    reasoning_scores: list[Path],
    reasoning: ReasoningConfig,
    problems: ProblemsConfig,
) -> Metadata:
    """GRPO with the prompt that asks for tags beside GRPO on the bare question, in training and in validation."""
    runs, settings = runs_of(grpo_model, reasoning_scores), grpo_runs(reasoning, problems)
    page = [
        "**Expected.** A prompt like the text that a model was trained on gets more of what it can: Qwen's maths models"
        " have read questions with boxed answers, and answer the bare question about as well as the tagged prompt after"
        " a hundred steps of GRPO (Liu et al., arXiv:2503.20783). A model that has never seen a form seldom writes it,"
        " and where all responses of a group earn nothing there is no gradient to learn it from."
    ]
    alone = [run for name, run in runs.items() if settings[name].template == "question_only"]
    tagged = [run for name, run in runs.items() if settings[name].template != "question_only"]
    if not alone or not tagged:
        page.append("**In our runs.** This preset has not GRPO with both prompts.")
        return READINGS.finish(step, "prompt", page, read=page)
    shown = [tagged[0], alone[0]]
    page += ["**In our runs**", side_by_side(shown), *map(_on_form, shown), on_scores(alone[0], tagged[0])]
    drawn = draw(step, shown, "valid_accuracy", "format_reward", "token_entropy", "mean_length", "grad_norm")
    return READINGS.finish(step, "prompt", page, read=page) | drawn


def _on_form(run: Run) -> str:
    form, alike = moved(run.rows, "format_reward"), moved(run.rows, "share_of_groups_alike")
    assert form is not None and alike is not None
    return (
        f"`{run.name}`: the share of well-formed responses went from {form.first:.1%} to {form.last:.1%}, that of"
        f" groups whose responses all earn the same and teach nothing from {alike.first:.1%} to {alike.last:.1%}."
    )
