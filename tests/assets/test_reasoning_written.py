"""The written items of reasoning: what their pages say of runs whose numbers are known, and without their runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from cs336.evals.report import Share, difference, wilson_interval
from cs336.files import write_json, write_jsonl
from cs336.preset_lookup import find_preset
from cs336.train.metrics import METRICS_FILE
from cs336_assets.asset import Step
from cs336_assets.flow import CHECKS
from cs336_assets.readings import PAGE_FILE
from cs336_assets.reasoning_failures import zero_shot_analysis
from cs336_assets.reasoning_written import (
    expert_iteration_comparison,
    length_normalization,
    off_policy_reasoning,
    prompt_ablation,
)

REASONER = find_preset("reasoner")


class Project:
    """Folders of runs and scores, made of numbers."""

    def __init__(self, root: Path) -> None:
        self.root, self.runs, self.scores = root, {}, []

    def add(self, asset, cell, rows, accuracy=None):
        folder = self.root / asset / cell
        folder.mkdir(parents=True)
        write_jsonl(folder / METRICS_FILE, rows)
        self.runs.setdefault(asset, []).append(folder)
        if accuracy is not None:
            model = asset if len(self.runs[asset]) == 1 else f"{asset}/{cell}"
            low, high = wilson_interval(round(1_000 * accuracy), 1_000)
            row = {"model": model, "task": "reasoning", "metric": "accuracy", "value": accuracy, "low": low}
            self.scores.append(self.root / "reasoning_scores" / f"{asset}-{cell}")
            self.scores[-1].mkdir(parents=True)
            write_json(self.scores[-1] / "scores.json", [row | {"high": high}])

    def page(self, asset, *inputs, **settings):
        folder = self.root / "page"
        folder.mkdir(exist_ok=True)
        shown = asset(Step(folder, preset="reasoner"), *inputs, **settings)
        return shown, (folder / PAGE_FILE).read_text()

    def of_grpo(self, asset, reasoning=REASONER.reasoning):
        grpo = self.runs.get("grpo_model", [])
        return self.page(asset, grpo, self.scores, reasoning=reasoning, problems=REASONER.problems)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("CS336_SHEETS", str(tmp_path / "sheets"))
    return Project(tmp_path)


def _rows(*updates, valid=(0.5, 0.6), seconds=100.0, per_batch=1):
    """A validation, updates of as many to a batch, and a validation with the last of them."""
    told = [
        {"step": step, "grpo_step": (step - 1) // per_batch + 1, "seconds": seconds * step / len(updates)} | update
        for step, update in enumerate(updates, 1)
    ]
    told[-1]["valid_accuracy"] = valid[1]
    return [{"step": 0, "valid_accuracy": valid[0], "seconds": 0.0}, *told]


def _lengths(wrong, right, norm):
    return {"mean_length": 64.0, "mean_length_incorrect": wrong, "mean_length_correct": right, "grad_norm": norm}


# ---- length normalisation


@pytest.mark.parametrize("drifts", [True, False])
def test_length_normalization_argues_and_measures(drifts, project):
    end = 90.0 if drifts else 40.0
    own = [_lengths(40.0, 80.0, 0.5), _lengths(60.0, 80.0, 1.5), _lengths(70.0, 80.0, 0.5), _lengths(end, 85.0, 1.5)]
    constant = [_lengths(40.0, 80.0, 0.25) for _ in range(4)]
    project.add("grpo_model", "grpo", _rows(*own), 0.8)
    project.add("grpo_model", "no-std", _rows(*own), 0.8)
    project.add("grpo_model", "constant-length", _rows(*constant), 0.7)
    shown, page = project.of_grpo(length_normalization)
    assert "| own length (`masked_mean`) | 2.000 | 2.000 | 0.250 | 0.143 |" in page
    assert "| constant 7 (`masked_normalize`) | 1.143 | 2.000 | 0.143 | 0.143 |" in page
    assert "64 tokens on average and the constant is 256" in page and "about 0.25 times as large" in page
    assert "0.25 against 1, 0.25 times" in page and "vary by 0.58 over the own length and 0.00" in page
    assert f"`grpo`: wrong responses went from 40 to {end:.0f} tokens, right ones from 80 to 85." in page
    assert ("what the argument expects, of one run each" in page) == drifts
    assert ("is not seen in these runs" in page) != drifts
    assert "norm of 1 in 50% of the updates of `grpo` and 0% of the updates of `constant-length`" in page
    assert "`constant-length` less `grpo` on the held-out problems: -10.0 points (-13.7 to -6.2), told from" in page
    assert (project.root / "page" / shown["curves"]["image"]).exists() and "no-std" not in page


def test_without_its_runs_a_page_says_so_in_a_line(project):
    project.add("grpo_model", "grpo", _rows(_lengths(40.0, 80.0, 0.5)), 0.8)
    _, page = project.of_grpo(length_normalization)
    assert page.rstrip().endswith("No run of this preset differs from its GRPO in the normalisation alone.")
    assert "| 1.143 | 2.000 |" in page
    assert "This preset has no off-policy run." in project.of_grpo(off_policy_reasoning)[1]
    assert "This preset has not GRPO with both prompts." in project.of_grpo(prompt_ablation)[1]
    _, page = project.page(expert_iteration_comparison, [], [], [], [], reasoning=REASONER.reasoning)
    assert page.rstrip().endswith("This preset has no Expert Iteration.")


def test_the_example_is_checked(tmp_path):
    passed, facts = CHECKS["the_example_is_the_handouts"].function(tmp_path)
    assert passed and facts["largest_error"] < 1e-6


# ---- Expert Iteration


def test_expert_iteration_stands_beside_both_kinds_of_sft(project):
    tuned = {"token_entropy": 0.3}
    project.add("sft_model", "full", _rows(tuned, valid=(0.1, 0.35)), 0.40)
    project.add("sft_model", "128", _rows(tuned), 0.9)
    project.add("longer_sft_model", "as-long-as-grpo", _rows(tuned), 0.41)
    sampled = {"num_sampled": 100, "token_entropy": 0.2, "mean_length_correct": 90.0, "mean_length_incorrect": 30.0}
    rounds = [sampled | {"answer_reward": 0.4}, sampled | {"answer_reward": 0.7, "token_entropy": 0.1}]
    project.add("expert_iteration_model", "expert-iteration", _rows(*rounds, valid=(0.36, 0.72)), 0.70)
    runs = [project.runs[name] for name in ("sft_model", "longer_sft_model", "expert_iteration_model")]
    _, page = project.page(expert_iteration_comparison, *runs, project.scores, reasoning=REASONER.reasoning)
    assert "`expert-iteration` starts from SFT." in page and "`128`" not in page
    assert "`expert-iteration` less `full` on the held-out problems: +30.0 points (+25.8 to +34.1), told from" in page
    assert "`expert-iteration` less `as-long-as-grpo` on the held-out problems: +29.0 points" in page
    assert (
        "40.0% were right in the first of 2 rounds, 70.0% in the last; accuracy on validation went from 36.0% to"
        in page
    )
    assert "Entropy went from 0.2000 to 0.1000 nats a token." in page
    assert "right responses had 90 tokens, wrong ones 30: what is kept is the longer kind." in page


# ---- off-policy


def _ratios(share, greatest, column="clip_fraction"):
    return {column: share, "ratio_mean": 1.0, "ratio_max": greatest, "token_entropy": 0.1}


def test_off_policy_runs_are_read_update_by_update(project):
    project.add("grpo_model", "grpo", _rows({"token_entropy": 0.2}, {}, valid=(0.5, 0.6), seconds=80.0), 0.8)
    clipped = [_ratios(0.0, 1.0), _ratios(0.02, 1.5), _ratios(0.0, 1.0), _ratios(0.06, 3.25)]
    project.add("grpo_model", "off-policy-1x4", _rows(*clipped, per_batch=2, valid=(0.5, 0.7), seconds=60.0), 0.8)
    free = [_ratios(0.0, 1.0, "would_clip_fraction"), _ratios(0.2, 40.0, "would_clip_fraction")]
    project.add("grpo_model", "no-clip-1x4", _rows(*free, per_batch=2), 0.75)
    project.add("grpo_model", "off-policy-1x2", _rows({"grad_norm": 1.0}, valid=(0.5, 0.55)))
    _, page = project.of_grpo(off_policy_reasoning)
    assert "| `off-policy-1x4` | 1 | 1.0 | 1.0 | 0.0 |" in page
    assert "| `off-policy-1x4` | 2 | 1.0 | 2.375 | 0.04 |" in page
    assert "| `no-clip-1x4` | 2 | 1.0 | 40.0 | 0.2 |" in page
    assert "`off-policy-1x4`: 0.00% of the tokens are clipped in a batch's first update and 4.00% in its last" in page
    assert "from 0.00% to 6.00%. The greatest ratio of any token was 3.25." in page
    assert "`no-clip-1x4`: 0.00% of the tokens would be clipped in a batch's first update and 20.00%" in page
    assert "`off-policy-1x2`: this run's rows hold no share of clipped tokens." in page
    best = "the best validation of `grpo`, 60.0% after 2 batches and 80 s"
    assert f"`off-policy-1x4` reached {best}, after 2 batches and 60 s." in page
    assert f"`off-policy-1x2` never reached {best}." in page
    assert "Clipping alone, `no-clip-1x4` less `off-policy-1x4` on the held-out problems: -5.0 points" in page


def test_a_run_that_never_rose_is_no_measure_of_speed(project):
    project.add("grpo_model", "grpo", _rows({"token_entropy": 0.2}, {}, valid=(0.6, 0.5)), 0.8)
    project.add("grpo_model", "off-policy-1x4", _rows(_ratios(0.0, 1.0), valid=(0.6, 0.7)), 0.8)
    _, page = project.of_grpo(off_policy_reasoning)
    assert "`grpo` never rose above where both start, 60.0%: there is no speed to compare." in page


# ---- the prompt


def test_prompts_stand_side_by_side_with_what_they_teach(project):
    both = replace(REASONER.reasoning, grpo_runs=("grpo", "question-only"))
    project.add("grpo_model", "grpo", _rows({"format_reward": 0.9, "share_of_groups_alike": 0.25}), 0.6)
    alone = {"format_reward": 0.0, "share_of_groups_alike": 1.0}
    project.add("grpo_model", "question-only", _rows(alone, alone, valid=(0.0, 0.0)), 0.0)
    _, page = project.of_grpo(prompt_ablation, both)
    assert "`grpo`: the share of well-formed responses went from 90.0% to 90.0%" in page
    assert "teach nothing from 100.0% to 100.0%." in page
    expected = difference(*(_share(value) for value in (0.0, 0.6)))
    assert f"`question-only` less `grpo` on the held-out problems: -60.0 points ({100 * expected.low:+.1f} to" in page


def test_one_prompt_alone_is_no_ablation(project):
    project.add("grpo_model", "grpo", _rows({}), 0.6)
    assert "This preset has not GRPO with both prompts." in project.of_grpo(prompt_ablation)[1]


def _share(value):

    return Share(value, *wilson_interval(round(1_000 * value), 1_000))


# ---- before any training


def _answer(output, right, *, format_reward, finish="end", answer="7"):
    prediction = output.rpartition("<answer>")[2].replace("</answer>", "") if format_reward else None
    return {
        "example": {"question": "3+4?", "answer": answer},
        "prompt": "User: 3+4?\nAssistant: <think>",
        "output": output,
        "finish": finish,
        "prediction": prediction,
        "format_reward": format_reward,
        "answer_reward": right,
    }


def test_answers_before_training_are_counted_explained_and_shown(project):
    wrong = _answer(" 3+4=8. </think> <answer>8</answer>", 0.0, format_reward=1.0)
    words = _answer(" </think> <answer>7 or so</answer>", 0.0, format_reward=1.0)
    cut_off = [_answer("So, and so", 0.0, format_reward=0.0, finish="length") for _ in range(5)]
    hidden = [_answer("It is 7", 0.0, format_reward=0.0) for _ in range(2)]
    other = _answer("It is 9", 0.0, format_reward=0.0, answer="9")
    right = _answer(" </think> <answer>7</answer>", 1.0, format_reward=1.0)
    for model, rows in (("start_policy", [wrong, words, *cut_off, *hidden, other]), ("grpo_model", [right, wrong])):
        folder = project.root / "reasoning_scores" / f"{model}-x-reasoning"
        folder.mkdir(parents=True)
        write_jsonl(folder / "generations.jsonl", rows)
    start = project.root / "reasoning_scores" / "start_policy-x-reasoning"
    settings = {"reasoning": REASONER.reasoning, "problems": REASONER.problems, "seed": 0}
    shown, page = project.page(zero_shot_analysis, start, **settings)
    assert "| start_policy | 10 | 0: 0.0% (0.0% to 27.8%) | 2: 20.0% (5.7% to 51.0%) | 8: 80.0%" in page
    assert "| cut off while it thinks | 5 | 0 |" in page and "| a calculation is wrong | 1 | 1 |" in page
    assert "| the right answer among other words | 1 | 0 |" in page and "no `\\boxed{}`" not in page
    # Of the three that end in a number all are right; with the next question's answer the first of them alone.
    assert "Of the 8 answers without the format 3 end in the right answer all the same, and 1 in that" in page
    assert "at fault in at most 40.0% of the 10 failures" in page
    assert "**(0, 0)**, 8 of the start policy's at random" in page and "**(1, 0)**, 2 of the" in page
    assert not shown["is_read"]
    (project.root / "sheets").mkdir()
    verdict = f'[zero_shot]\nverdict = "It cannot add."\nlabels = {{outputs = "{shown["mark"]}"}}\n'
    (project.root / "sheets" / "reasoner_reasoning.toml").write_text(verdict)
    shown, page = project.page(zero_shot_analysis, start, **settings)
    assert shown["is_read"] and page.startswith("**Read:** It cannot add.\n")


def test_where_there_are_no_answers_before_training_the_page_says_so(project):
    settings = {"reasoning": REASONER.reasoning, "problems": REASONER.problems, "seed": 0}
    for start in (None, project.root / "reasoning_scores" / "start_policy-x-reasoning"):
        assert "are not here" in project.page(zero_shot_analysis, start, **settings)[1]
