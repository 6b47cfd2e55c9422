"""The reasoning track in miniature: from a base model to GRPO's scores, its checks, studies and what is made again."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import dagster as dg
import pytest
import torch

from cs336.evals.report import ScoreRow
from cs336.files import UserError, read_json, read_jsonl, write_json, write_jsonl
from cs336.leaderboard import collect_scores, scores_version
from cs336.model.huggingface import save_huggingface
from cs336.model.transformer import ModelConfig, TransformerLM, save_model
from cs336.posttrain.config import chain_cells
from cs336.posttrain.runs import training_seconds
from cs336.preset_lookup import find_preset
from cs336.presets import Preset
from cs336.store import Store, Version
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokenizer.formats import END_OF_TEXT, OWN_FILE
from cs336.train.metrics import METRICS_FILE
from cs336_assets.asset import STAGES, Step, make, part_names, version_of
from cs336_assets.binding import bind_stage, evaluate, shards_of_run
from cs336_assets.commands import partition_range
from cs336_assets.flow import CHECKS
from cs336_assets.graph import build_definitions
from cs336_assets.reasoning_scores import chain_accuracies
from cs336_assets.resources import Runtime
from cs336_assets.selections import REASONING
from tests.assets.conftest import ROOT, make_project
from tests.posttrain.test_start import TOKENIZER

PRESET = "micro_reasoning"


@dataclass
class Made:
    """The chain and the experiments around it, in a folder of artifacts."""

    preset: Preset
    store: Store

    def make(self, asset, cell=None, preset=None):
        step = Step(Path(), preset=self.store.preset, part=cell, device="cpu")
        return make(STAGES[asset], preset or self.preset, self.store, step)

    def version(self, asset, cell=None, preset=None):
        return version_of(STAGES[asset], preset or self.preset, self.store, cell)

    def check(self, name):
        return evaluate(CHECKS[name], self.preset, self.store, None)

    def manifest(self, asset, cell=None):
        manifest = self.store.manifest(asset, cell)
        assert manifest is not None
        return manifest


def _put_base_model(store, config):
    """What the graph makes from text: here a model that has learnt nothing, and a vocabulary of bytes."""
    vocab = {number: bytes([number]) for number in range(256)} | {256: END_OF_TEXT.encode()}
    torch.manual_seed(0)
    with store.staging("tokenizer", None, Version("1", "bytes")) as (folder, _):
        Tokenizer(vocab, [], [END_OF_TEXT]).save(folder)
    with store.staging("base_model", None, Version("1", "random")) as (folder, _):
        save_model(TransformerLM(config), folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CS336_PRESETS", str(ROOT / "tests" / "presets.toml"))
        patch.setenv("CS336_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
        patch.delenv("CS336_DATA", raising=False)
        patch.setenv("CS336_DOWNLOADS", str(tmp_path_factory.mktemp("downloads")))
        preset = find_preset(PRESET)
        chain = Made(preset, Store(PRESET))
        shape = ModelConfig(vocab_size=257, context_length=192, d_model=32, num_layers=1, num_heads=2)
        _put_base_model(chain.store, shape)
        for asset in dict.fromkeys(name for names in REASONING.values() for name in names):
            if asset in ("reasoning_study", "rollout_log"):
                continue
            for cell in part_names(STAGES[asset], preset, chain.store) if STAGES[asset].cells else [None]:
                chain.make(asset, cell)
        chain.make("reasoning_study")
        chain.make("rollout_log")
        yield chain


def _chain_weights(made, asset):
    cell = chain_cells(made.preset.reasoning, made.preset.problems)[asset][0]
    return made.store.path(asset, cell)


def test_each_stage_starts_from_the_one_before_it(made):
    def inputs(asset, cell):
        return {name for name in made.manifest(asset, cell)["inputs"] if not name.startswith(("data:", "file:"))}

    assert inputs("start_policy", None) == {"base_model", "tokenizer"}
    assert inputs("sft_model", "32-correct") == {"start_policy", "reasoning_problems"}
    assert inputs("expert_iteration_model", "expert-iteration") == {"sft_model", "reasoning_problems"}
    assert inputs("grpo_model", "off-policy-1x2") == {"expert_iteration_model", "reasoning_problems"}
    between = {"expert_iteration_model", "grpo_model"}  # the time that it has
    assert inputs("longer_sft_model", "as-long-as-grpo") == {"sft_model", "reasoning_problems"} | between
    assert inputs("reasoning_scores", "grpo_model-x-gsm8k") == {"grpo_model", "reasoning_problems"}


def test_nothing_is_made_twice_and_a_longer_grid_leaves_what_was_run(made):
    longer = replace(made.preset, reasoning=replace(made.preset.reasoning, sft_runs=("full", "32-correct", "16")))
    for asset, cell in (
        ("sft_model", "32-correct"),
        ("grpo_model", "grpo"),
        ("reasoning_scores", "sft_model-x-reasoning"),
    ):
        assert made.make(asset, cell)[2], "it is current"
        assert made.version(asset, cell, longer) == made.version(asset, cell)
    rates = replace(made.preset.reasoning, grpo=replace(made.preset.reasoning.grpo, learning_rate=2e-3))
    changed = replace(made.preset, reasoning=rates)
    assert made.version("grpo_model", "grpo", changed) != made.version("grpo_model", "grpo")
    assert made.version("sft_model", "full", changed) == made.version("sft_model", "full")


def test_a_preset_that_starts_elsewhere_needs_no_base_model(made, monkeypatch):
    """No text, no tokenizer, no base model; and its GRPO starts from the checkpoint."""
    monkeypatch.setenv("CS336_DATA", str(made.store.root / "nowhere"))
    preset = find_preset("qwen_math")
    deps = {key.path[-1] for key in bind_stage(STAGES["start_policy"], preset, Runtime()).dependency_keys}
    assert deps == set()
    deps = {key.path[-1] for key in bind_stage(STAGES["grpo_model"], preset, Runtime()).dependency_keys}
    assert deps == {"start_policy", "reasoning_problems"}
    for name in ("qwen_math", "reasoner"):  # the checkpoint and the text are not here: the graph loads
        assert build_definitions(name)
    with pytest.raises(UserError, match="cs336 data fetch"):
        version_of(STAGES["start_policy"], preset, Store("qwen_math"), None)


def test_dagster_draws_the_cell_that_a_stage_starts_from(made):
    """In the UI a run of GRPO's cells asks for the one cell of Expert Iteration, and for nothing else of it."""
    bound = bind_stage(STAGES["grpo_model"], made.preset, Runtime())
    mapping = bound.get_partition_mapping(dg.AssetKey([PRESET, "expert_iteration_model"]))
    assert mapping == dg.SpecificPartitionsPartitionMapping(["expert-iteration"])
    assert {key.path[-1] for key in bound.dependency_keys} == {"expert_iteration_model", "reasoning_problems"}


def test_every_check_can_be_read(made):
    for name, declared in CHECKS.items():
        if STAGES[declared.asset].group == "reasoning":
            passed, facts = made.check(name)
            assert isinstance(passed, bool) and facts, name
    for name in ("no_held_out_problem_is_trained_on", "rewards_are_for_new_problems", "questions_leave_room_to_think"):
        assert made.check(name)[0], made.check(name)
    for name in ("sft_stayed_finite", "grpo_stayed_finite", "generator_and_trainer_agree", "all_traces_fit"):
        assert made.check(name)[0], made.check(name)
    passed, facts = made.check("it_had_as_much_time_as_grpo")
    stages = [_chain_weights(made, asset) for asset in ("expert_iteration_model", "grpo_model")]
    assert passed and facts["longer_sft_seconds"] >= sum(map(training_seconds, stages))


@pytest.mark.parametrize("leak", ["question", "calculation", "trace"])
def test_a_held_out_problem_in_training_is_found(made, leak, tmp_path):
    folder = tmp_path / "problems"
    shutil.copytree(made.store.path("reasoning_problems"), folder)
    (held_out, *_), train = list(read_jsonl(folder / "test.jsonl")), list(read_jsonl(folder / "train.jsonl"))
    if leak == "trace":
        traces = list(read_jsonl(folder / "traces.jsonl"))
        prompt = traces[0]["prompt"].replace(traces[0]["question"], held_out["question"])
        write_jsonl(folder / "traces.jsonl", [traces[0] | {"prompt": prompt}, *traces])
    elif leak == "question":
        write_jsonl(folder / "train.jsonl", [*train, train[0] | {"question": held_out["question"]}])
    else:
        write_jsonl(folder / "train.jsonl", [*train, held_out | {"question": "The same in other words?"}])
    passed, facts = CHECKS["no_held_out_problem_is_trained_on"].function(folder, made.preset.problems)
    assert not passed and facts["in_other_words" if leak == "calculation" else "leaks"] == [held_out["question"]]


def test_responses_without_room_are_found_before_any_training(made):
    preset = made.preset
    grpo = replace(preset.reasoning.grpo, sampling_max_tokens=10_000)
    passed, facts = CHECKS["questions_leave_room_to_think"].function(
        made.store.path("start_policy"),
        made.store.path("reasoning_problems"),
        preset.policy,
        preset.problems,
        replace(preset.reasoning, grpo=grpo),
    )
    assert not passed and facts["longest_response"] == 10_000
    assert 0 < facts["longest_prompt"] < facts["context_length"] < 10_000 and not facts["broken"]


def test_scores_are_of_every_model_and_task_and_count_what_was_written(made):
    rows = [row for row in collect_scores(made.store.root) if row["preset"] == PRESET]
    scored = {(row["model"], row["task"]) for row in rows}
    chain = ("start_policy", "sft_model", "longer_sft_model", "expert_iteration_model", "grpo_model")
    assert {(model, task) for model in chain for task in ("reasoning", "gsm8k")} <= scored
    assert ("grpo_model/off-policy-1x2", "reasoning") in scored and ("sft_model/32-correct", "gsm8k") not in scored
    assert not any(task == "math" for _, task in scored), "MATH is not on this machine"
    folder = made.store.path("reasoning_scores", "grpo_model-x-reasoning")
    written = list(read_jsonl(folder / "generations.jsonl"))
    (score,) = read_json(folder / "scores.json")
    assert score["num_examples"] == len(written) == 12
    assert score["value"] == sum(row["correct"] for row in written) / 12
    before = scores_version(made.store.root)
    (folder / ".work").mkdir()  # no artifact
    write_json(folder / ".work" / "scores.json", [])
    assert scores_version(made.store.root) == before
    shutil.rmtree(folder / ".work")


def test_the_right_traces_alone_are_all_of_these(made):
    counts = read_json(made.store.path("sft_model", "32-correct") / "traces.json")
    assert counts["num_traces"] == counts["num_kept"] == 64 and counts["num_wrong"] == 0
    assert counts["num_train_traces"] == 32


def test_the_log_of_rollouts_can_be_read(made):
    page = (made.store.path("rollout_log") / "rollouts.md").read_text()
    steps = [line for line in page.splitlines() if line.startswith("## Step")]
    assert [line.split(":")[0] for line in steps] == ["## Step 0", "## Step 2", "## Step 3"]
    (first, *_) = read_jsonl(made.store.path("grpo_model", "grpo") / "rollouts" / "step-000003.jsonl")
    assert first["response"] in page and f"right answer `{first['ground_truth']}`" in page


def test_written_items_are_filled_from_the_chain(made):
    """Every model's answers are counted before and after training; what the preset has no run for says so."""
    reasons = read_json(made.store.path("zero_shot_analysis") / "reasons.json")
    tuned = {"sft_model", "longer_sft_model", "expert_iteration_model", "grpo_model"}
    assert reasons.keys() == {"start_policy"} | tuned
    right = sum(row["correct"] for row in read_jsonl(_answers_of(made, "start_policy")))
    assert sum(reasons["start_policy"].values()) == 12 - right

    def page(asset):
        return (made.store.path(asset) / "page.md").read_text()

    assert "Round by round" in page("expert_iteration_comparison")
    assert "| `off-policy-1x2` | 2 |" in page("off_policy_reasoning")
    assert "differs from its GRPO in the normalisation alone" in page("length_normalization")
    assert "`question-only`: the share of well-formed responses went from 0.0% to 0.0%" in page("prompt_ablation")
    assert "`question-only` less `grpo` on the held-out problems" in page("prompt_ablation")


def test_the_bare_question_is_asked_in_training_validation_and_scores(made):
    """Its reward wants a box, which a policy that has read none does not write: nothing is earned, nothing moves."""
    folder, start = (
        made.store.path(asset, cell)
        for asset, cell in (("grpo_model", "question-only"), ("expert_iteration_model", "expert-iteration"))
    )
    questions = {
        split: {each["question"] for each in read_jsonl(made.store.path("reasoning_problems") / f"{split}.jsonl")}
        for split in ("valid", "test")
    }
    validated = read_jsonl(folder / "rollouts" / "step-000003.jsonl")
    assert {row["prompt"] for row in validated} == questions["valid"]
    scored = made.store.path("reasoning_scores", "grpo_model-question-only-x-reasoning")
    assert {row["prompt"] for row in read_jsonl(scored / "generations.jsonl")} == questions["test"]
    assert all(row["share_of_groups_alike"] == 1 for row in read_jsonl(folder / METRICS_FILE) if row["step"])
    assert (folder / "model.safetensors").read_bytes() == (start / "model.safetensors").read_bytes()


def _answers_of(made, model):
    return made.store.path("reasoning_scores", f"{model}-x-reasoning") / "generations.jsonl"


def test_folders_of_runs_hold_what_is_needed_and_no_checkpoints(made):
    for asset in ("sft_model", "expert_iteration_model", "grpo_model", "longer_sft_model"):
        folder = _chain_weights(made, asset)
        assert (folder / "model.safetensors").exists() and (folder / "bpe.json").exists()
        assert (folder / "curves.png").exists() and (folder / METRICS_FILE).exists()
        assert not list(folder.rglob("checkpoints")) and len(list(folder.rglob("*.safetensors"))) == 1


def test_the_leaderboards_clock_runs_from_the_start_policy(made):
    study = read_json(made.store.path("reasoning_leaderboard") / "study.json")
    seconds = {
        asset: [row["seconds"] for row in read_jsonl(_chain_weights(made, asset) / METRICS_FILE)][-1]
        for asset in ("sft_model", "expert_iteration_model", "grpo_model")
    }
    ends = {name: curve[-1][0] for name, curve in study["curves"].items()}
    assert ends["sft_model"] == pytest.approx(seconds["sft_model"])
    assert ends["grpo_model"] == pytest.approx(sum(seconds.values())), "it stands on the two before it"
    assert set(ends) >= {"grpo_model/off-policy-1x2", "sft_model/32-correct"}


def test_the_leaderboard_ranks_scores_of_runs_in_time(made):
    """Not validations; and the run that takes longest is left without a score where the time is a little less."""
    ranking = read_json(made.store.path("reasoning_leaderboard") / "study.json")["ranking"]
    (score,) = read_json(made.store.path("reasoning_scores", "grpo_model-x-reasoning") / "scores.json")
    assert {row[0]: row[1] for row in ranking}["grpo_model"] == score["value"]
    assert [row[1] for row in ranking] == sorted((row[1] for row in ranking), reverse=True)
    slowest = max(ranking, key=lambda row: row[4])
    limited = replace(made.preset.reasoning, leaderboard_seconds=slowest[4] - 1e-6)
    made.make("reasoning_leaderboard", preset=replace(made.preset, reasoning=limited))
    again = read_json(made.store.path("reasoning_leaderboard") / "study.json")["ranking"]
    assert {row[0]: row[1] for row in again}[slowest[0]] is None and again[-1][0] == slowest[0]


def test_variants_stand_side_by_side(made):
    study = read_json(made.store.path("grpo_study") / "study.json")
    assert list(study) == ["grpo", "off-policy-1x2", "question-only"]
    assert study["off-policy-1x2"]["clip_fraction"] is not None and study["grpo"]["clip_fraction"] is None
    assert study["off-policy-1x2"]["steps"] == 2 * study["grpo"]["steps"] == 6
    assert study["grpo"]["test_value"] is not None and (made.store.path("grpo_study") / "curves.png").exists()
    assert study["grpo"]["num_seeds"] == 1 and study["grpo"]["seeds_spread"] is None
    assert study["grpo"]["by_preset"] == {PRESET: study["grpo"]["test_value"]}
    assert (made.store.path("grpo_study") / "scores.png").exists()


def test_variants_scores_are_pooled_with_those_of_other_seeds(made):
    name = "grpo_model-off-policy-1x2-x-reasoning"
    folder = made.store.path("reasoning_scores", name)
    (score,) = read_json(folder / "scores.json")
    other = made.store.folder.parent / f"{PRESET}_seed_1"
    try:
        shutil.copytree(folder, other / "reasoning_scores" / name)
        changed = {"preset": other.name, "value": 1.0, "num_examples": 3 * score["num_examples"]}
        write_json(other / "reasoning_scores" / name / "scores.json", [score | changed])
        made.make("grpo_study")
        study = read_json(made.store.path("grpo_study") / "study.json")
    finally:
        shutil.rmtree(other)
    pooled = study["off-policy-1x2"]
    assert pooled["test_value"] == score["value"] < 1
    assert pooled["seeds_accuracy"] == pytest.approx((score["value"] + 3) / 4) and pooled["num_seeds"] == 2
    assert pooled["by_preset"] == {PRESET: score["value"], other.name: 1.0}
    assert pooled["seeds_low"] < pooled["seeds_accuracy"] <= pooled["seeds_high"] and pooled["seeds_spread"] > 0
    assert study["grpo"]["num_seeds"] == 1
    made.make("grpo_study")


# ---- what checks find

_STAGES = {"start_policy": 0.1, "sft_model": 0.4, "longer_sft_model": 0.45, "grpo_model": 0.6}


@pytest.mark.parametrize(
    ("check", "changes", "passed"),
    [
        ("training_raises_the_accuracy", {}, True),
        ("training_raises_the_accuracy", {"sft_model": 0.05}, False),
        ("training_raises_the_accuracy", {"grpo_model": 0.12}, False),  # within chance
        ("grpo_beats_sft", {}, True),
        ("grpo_beats_sft", {"longer_sft_model": 0.7}, False),
        ("grpo_beats_sft", {"sft_model": 0.7}, False),
        ("grpo_beats_sft", {"longer_sft_model": 0.46}, False),  # less than 15 points
        ("grpo_beats_sft", {"sft_model": 0.46}, False),
        ("grpo_beats_sft", {"sft_model": 0.86, "longer_sft_model": 0.87, "grpo_model": 0.88}, True),  # no room
        ("grpo_beats_sft", {"sft_model": 0.86, "longer_sft_model": 0.85, "grpo_model": 0.88}, False),
        ("grpo_beats_sft", {"sft_model": 0.86, "longer_sft_model": 0.88, "grpo_model": 0.88}, False),
    ],
)
def test_a_stage_that_does_not_help_is_found(check, changes, passed, tmp_path):
    stages = _STAGES | changes
    study = {name: {"accuracy": each, "low": each - 0.02, "high": each + 0.02} for name, each in stages.items()}
    write_json(tmp_path / "study.json", study)
    assert CHECKS[check].function(tmp_path)[0] == passed


def test_what_grpo_gains_is_told_with_its_intervals(tmp_path):
    """By the questions sqrt(0.05² + 0.05²) either way, Newcombe; over three seeds 4.303 * 0.1 / sqrt(3), Student."""

    def stage(accuracy, *of_seeds):
        by_preset = dict(zip(("a", "a_seed_1", "a_seed_2"), of_seeds, strict=False))
        return {"accuracy": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.05, "by_preset": by_preset}

    study = {"sft_model": stage(0.4, 0.4, 0.4, 0.4), "longer_sft_model": stage(0.45, 0.45)}
    write_json(tmp_path / "study.json", study | {"grpo_model": stage(0.7, 0.6, 0.7, 0.8)})
    passed, facts = CHECKS["grpo_beats_sft"].function(tmp_path)
    assert passed and facts["gain"] == 0.25 and facts["too_little_over"] == []
    assert facts["over_sft_model"] == "+30.0 points (+22.9 to +37.1 by the questions; +5.2 to +54.8 over 3 seeds)"
    assert facts["over_longer_sft_model"] == "+25.0 points (+17.9 to +32.1 by the questions; one seed)"
    write_json(tmp_path / "study.json", study | {"grpo_model": stage(0.59)})
    passed, facts = CHECKS["grpo_beats_sft"].function(tmp_path)
    assert not passed and facts["too_little_over"] == ["longer_sft_model"]


@pytest.mark.parametrize(
    ("check", "row"),
    [
        ("generator_and_trainer_agree", {"mean_logprob_difference": 0.2}),
        ("grpo_stayed_finite", {"train_loss": float("inf"), "grad_norm": 1.0}),
        ("sft_stayed_finite", {"train_loss": 1.0, "grad_norm": float("nan")}),
        ("every_round_kept_some", {"num_kept": 0}),
    ],
)
def test_a_run_that_went_wrong_is_found(check, row, tmp_path):
    good = {"mean_logprob_difference": 0.01, "train_loss": 1.0, "grad_norm": 1.0, "num_kept": 3}
    for name, rows in (("good", [good]), ("bad", [good, good | row])):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / METRICS_FILE, [{"step": step} | each for step, each in enumerate(rows, 1)])
    assert CHECKS[check].function([tmp_path / "good"])[0]
    assert not CHECKS[check].function([tmp_path / "good", tmp_path / "bad"])[0]


# ---- seeds


def _score(preset, model, value, num_examples, task="reasoning"):
    return ScoreRow(
        preset=preset,
        model=model,
        task=task,
        set_name="",
        metric="accuracy",
        value=value,
        low=0.0,
        high=1.0,
        num_examples=num_examples,
        measured="here",
    )


def test_seeds_are_pooled_by_hand():
    rows = [
        _score("a", "grpo_model", 0.75, 100),
        _score("a_seed_1", "grpo_model", 0.25, 300),
        _score("a", "grpo_model", 1.0, 9, task="gsm8k"),
    ]
    pooled = chain_accuracies(rows)["grpo_model"]
    assert pooled["accuracy"] == (75 + 75) / 400 and pooled["num_examples"] == 400
    assert pooled["by_preset"] == {"a": 0.75, "a_seed_1": 0.25}
    assert pooled["spread"] == pytest.approx(0.125**0.5) and chain_accuracies(rows[:1])["grpo_model"]["spread"] is None
    assert (round(pooled["low"], 4), round(pooled["high"], 4)) == (0.329, 0.4234)  # Wilson's formula, worked by hand


def test_seeds_that_asked_the_same_questions_do_not_narrow_the_interval():
    rows = [_score(name, "grpo_model", 0.5, 100) | {"set_name": "math, r1_zero"} for name in ("a", "a_seed_1")]
    alone, both = (chain_accuracies(some)["grpo_model"] for some in (rows[:1], rows))
    assert both["num_examples"] == 100 and (both["low"], both["high"]) == (alone["low"], alone["high"])


def test_a_preset_with_a_seed_in_its_name_is_that_preset_with_the_seed():
    seeded = find_preset("reasoner_seed_2")
    assert seeded == replace(find_preset("reasoner"), name="reasoner_seed_2", seed=2)
    with pytest.raises(UserError, match="no preset 'nobody'"):
        find_preset("nobody_seed_2")


# ---- interruption


class _Killed(BaseException):
    """Not an error that anything below would handle."""


@pytest.mark.parametrize(("asset", "cell"), [("sft_model", "full"), ("grpo_model", "grpo")])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(made, asset, cell, tmp_path, monkeypatch):
    stopped = Made(made.preset, Store(PRESET, root=tmp_path))
    for whole in ("tokenizer", "base_model", "reasoning_problems", "start_policy"):
        shutil.copytree(made.store.path(whole), stopped.store.path(whole))
    if asset == "grpo_model":
        shutil.copytree(made.store.path("expert_iteration_model"), stopped.store.path("expert_iteration_model"))
    seen = []

    class Log:
        def info(self, line):
            seen.append(line)
            if len(seen) == 2:  # the second validation
                raise _Killed

    class Context:
        log = Log()

    step = Step(Path(), preset=PRESET, part=cell, device="cpu", context=Context())
    with pytest.raises(_Killed):
        make(STAGES[asset], made.preset, stopped.store, step)
    assert stopped.store.manifest(asset, cell) is None
    (work,) = (tmp_path / PRESET / ".work").glob(f"{asset}--{cell}--*")
    assert list((work / "checkpoints").iterdir())
    stopped.make(asset, cell)
    ours, undisturbed = (each.store.path(asset, cell) for each in (stopped, made))
    for name in ("model.safetensors", "rollouts/step-000000.jsonl"):
        assert (ours / name).read_bytes() == (undisturbed / name).read_bytes()
    steps = [[row["step"] for row in read_jsonl(folder / METRICS_FILE)] for folder in (ours, undisturbed)]
    assert steps[0] == steps[1]


def test_a_range_of_cells_is_none_of_shards(tmp_path):
    """Checks of a preset that never crawled anything: it starts from a checkpoint."""
    assert not shards_of_run(
        CHECKS["all_traces_fit"],
        partition_range("full", "32-correct"),
        find_preset("qwen_math"),
        Store("x", root=tmp_path),
    )


# ---- by the command


@pytest.mark.slow
def test_one_command_makes_text_base_model_chain_and_scores(project):
    made = project.run("reasoning", PRESET)
    assert f"{PRESET}/grpo_model[grpo]: made" in made and "off-policy" not in made
    assert f"{PRESET}/base_model: made" in made and "tokenizer_study" not in made and "perplexity" not in made
    scores = project.python("-m", "cs336", "scores", "--preset", PRESET).stdout
    assert all(name in scores for name in ("start_policy", "sft_model", "expert_iteration_model", "grpo_model"))
    again = project.run("reasoning", PRESET)
    assert ": made in" not in again
    more = project.run("reasoning_experiments", PRESET)
    assert f"{PRESET}/grpo_model[off-policy-1x2]: made" in more and f"{PRESET}/grpo_study: made" in more
    assert f"{PRESET}/grpo_model[grpo]: unchanged" in more


_CHECKPOINT_PRESET = """
[small_math]
base = "qwen_math"
fetch = false
policy = {start = "%(folder)s/checkpoint"}
problems = {train_file = "%(folder)s/math.jsonl", test_file = "%(folder)s/test.jsonl", num_train = 8, num_valid = 4}
[small_math.reasoning]
score_tasks = ["reasoning"]
sft_runs = []
expert_iteration_runs = []
grpo_runs = ["grpo"]
[small_math.reasoning.grpo]
n_grpo_steps = 2
rollout_batch_size = 8
train_batch_size = 8
group_size = 4
gradient_accumulation_steps = 4
sampling_max_tokens = 16
valid_interval = 1
"""


@pytest.mark.slow
def test_grpo_on_a_checkpoint_is_one_command_and_needs_no_text(tmp_path):
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=257, context_length=1_024, d_model=32, num_layers=1, num_heads=2, qkv_bias=True)
    save_huggingface(TransformerLM(shape), tmp_path / "checkpoint", tokenizer=TOKENIZER)
    (tmp_path / "checkpoint" / OWN_FILE).unlink()  # transformers' files alone, as the Hub has them
    rows = [{"problem": f"What is {n}+{n}?", "answer": str(2 * n)} for n in range(20)]
    write_jsonl(tmp_path / "math.jsonl", rows[:14])
    write_jsonl(tmp_path / "test.jsonl", rows[14:])
    (tmp_path / "presets.toml").write_text(_CHECKPOINT_PRESET % {"folder": tmp_path})
    project = make_project(tmp_path / "project", CS336_PRESETS=str(tmp_path / "presets.toml"))
    made = project.run("reasoning", "small_math")
    assert "small_math/grpo_model[grpo]: made" in made and "crawl" not in made
    assert "grpo_model" in project.python("-m", "cs336", "scores", "--preset", "small_math").stdout
