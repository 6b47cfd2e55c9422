"""Instruction tuning and DPO in the graph: the chain in miniature, its files, pages and checks."""

import dataclasses
import json
import re
import shutil
from dataclasses import replace

import pytest
import torch

from cs336.evals.generated_tasks import GeneratedConfig
from cs336.evals.suite import GRADED, JUDGED, ChatEvalConfig, JudgeConfig
from cs336.files import UserError, read_json, read_jsonl, write_json, write_jsonl
from cs336.leaderboard import collect_scores, score_folders
from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.posttrain.dpo import DpoConfig
from cs336.posttrain.instruction_sft import InstructionSftConfig
from cs336.posttrain.instructions import InstructionsConfig, PreferencesConfig
from cs336.posttrain.policy import save_policy
from cs336.posttrain.preferences import Preference
from cs336.presets import LLAMA, TINY
from cs336.store import MANIFEST, Store
from cs336.tokenizer.bpe import Tokenizer
from cs336.train.metrics import METRICS_FILE
from cs336_assets import chat_evals, chat_written, dpo_study, instruct
from cs336_assets.asset import WHOLE, Step, make, version_of
from cs336_assets.binding import shards_of_run
from cs336_assets.commands import partition_range
from cs336_assets.flow import CHECKS, STAGES
from cs336_assets.instruct import open_base
from cs336_assets.selections import INSTRUCT
from tests.assets.conftest import make_project

# Without one of the bytes, whose compiled kernels would take half a minute.
BYTES = Tokenizer({number: bytes([number]) for number in range(255)}, [], ["<|endoftext|>"])
EASY = GeneratedConfig(levels=(1,))
PRESET = replace(
    TINY,
    instructions=InstructionsConfig(
        datasets=("t0-sample",), num_valid=16, num_problems=60, problems=EASY, sample_if_absent=True
    ),
    instruction_sft=InstructionSftConfig(
        batch_size=8, micro_batch_size=8, learning_rate=5e-3, seq_length=64, valid_interval=10
    ),
    preferences=PreferencesConfig(num_valid=8, num_problems=48, sample_if_absent=True),
    dpo=DpoConfig(batch_size=8, micro_batch_size=8, num_epochs=4, learning_rate=1e-3, valid_interval=3, max_tokens=400),
    chat_evals=ChatEvalConfig(
        max_mmlu=3, max_gsm8k=3, max_alpaca=3, max_safety=3, num_generated=3, problems=EASY, max_new_tokens=12
    ),
    judges=JudgeConfig(),
)
KINDS = ("hh", "verified")
TASKS = (*GRADED, *JUDGED)


class Chain:
    """Artifacts made by the plain functions, as the graph lays them out."""

    def __init__(self, root):
        self.root = root / "tiny"
        self.shown = {}

    def path(self, name, part=None):
        return self.root / name / part if part else self.root / name

    def parts(self, name):
        return [self.path(name, part) for part in STAGES[name].cells(PRESET)]

    def make(self, name, **inputs):
        stage = STAGES[name]
        for part, cell in (stage.cells(PRESET) if stage.cells else {None: None}).items():
            folder = self.path(name, part)
            folder.mkdir(parents=True)
            settings = {key: cell if key == "cell" else getattr(PRESET, key) for key in stage.settings}
            given = {key: value(part) if callable(value) else value for key, value in inputs.items()}
            step = Step(folder=folder, part=part, device="cpu")
            self.shown[name, part] = shown = stage.function(step, **given, **settings)
            write_json(folder / MANIFEST, {"fingerprint": f"{name} {part}", "metadata": shown})


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    root = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CS336_DATA", raising=False)
        patch.setenv("CS336_DOWNLOADS", str(root / "downloads"))
        patch.setenv("CS336_SHEETS", str(root / "sheets"))
        chain = Chain(root)
        torch.manual_seed(0)
        shape = ModelConfig(vocab_size=256, context_length=416, d_model=32, num_layers=1, num_heads=2, d_ff=64)
        for name in ("base_model", "tokenizer"):
            chain.path(name).mkdir(parents=True)
        save_policy(TransformerLM(shape), None, chain.path("base_model"))
        BYTES.save(chain.path("tokenizer"))
        base = {"base_model": chain.path("base_model"), "tokenizer": chain.path("tokenizer")}
        chain.make("instruction_data")
        chain.make("preference_data", instruction_model=None)
        chain.make("instruction_model", instruction_data=chain.path("instruction_data"), **base)
        tuned = {"instruction_model": chain.path("instruction_model")}
        chain.make("dpo_model", preference_data=lambda part: chain.path("preference_data", part), **tuned)
        chain.make("base_answers", **base)
        chain.make("instruction_answers", **tuned)
        chain.make("dpo_answers", dpo_model=chain.parts("dpo_model"))
        answers = {name: chain.parts(name) for name in ("base_answers", "instruction_answers", "dpo_answers")}
        chain.make("chat_judgements", **answers)
        judged = {"chat_judgements": chain.path("chat_judgements")}
        chain.make("alignment_tax", **answers, **judged)
        of_dpo = {name: answers[name] for name in ("instruction_answers", "dpo_answers")}
        chain.make("dpo_study", dpo_model=chain.parts("dpo_model"), **of_dpo)
        pairs = {"preference_data": chain.parts("preference_data")}
        chain.make("instruction_reading", instruction_data=chain.path("instruction_data"))
        chain.make("preference_reading", **pairs)
        chain.make("failure_analysis", **answers, **judged)
        chain.make("red_teaming", dpo_model=chain.parts("dpo_model"), **tuned)
        chain.make("length_controlled_win_rates", **judged)
        chain.make("judge_agreements", **pairs)
        chain.make("dpo_derivation")
        yield chain


def test_the_data_stand_on_one_side_each(chain):
    passed, facts = instruct.no_instruction_is_on_both_sides(chain.path("instruction_data"))
    assert passed and facts["num_valid"] == 5 + 8  # a fifth of the sample at most, half of the 16 of the problems
    assert instruct.no_pair_is_on_both_sides(chain.parts("preference_data"))[0]


def test_a_prompt_or_pair_on_both_sides_is_found(chain, tmp_path):
    for name, check in (
        ("instruction_data", lambda folder: instruct.no_instruction_is_on_both_sides(folder)),
        ("preference_data/hh", lambda folder: instruct.no_pair_is_on_both_sides([folder])),
    ):
        copy = tmp_path / name
        shutil.copytree(chain.root / name, copy)
        with (copy / "train.jsonl").open("a") as file:
            file.write((copy / "valid.jsonl").read_text())
        assert not check(copy)[0]


def test_tuning_and_dpo_lowered_their_losses(chain):
    assert instruct.tuning_lowered_the_loss(chain.path("instruction_model"))[0]
    passed, facts = instruct.pairs_were_learnt(chain.parts("dpo_model"))
    assert passed and facts["last_losses"].keys() == set(KINDS)
    for name, part in (("instruction_model", None), ("dpo_model", "hh"), ("dpo_model", "verified")):
        folder = chain.path(name, part)
        assert (folder / "bpe.json").exists() and not (folder / "checkpoints").exists()
        assert (folder / ("curves.png" if part else "curve.png")).read_bytes().startswith(b"\x89PNG")


def test_what_stands_as_kept_is_the_validation_of_the_weights_that_are(chain, tmp_path):
    """The best one's, or the last one's, as the preset keeps them."""
    rows = list(read_jsonl(chain.path("dpo_model", "hh") / METRICS_FILE))
    best = max((row for row in rows if "valid_accuracy" in row), key=lambda row: row["valid_accuracy"])
    assert read_json(chain.path("dpo_model", "hh") / "kept.json") == best
    shown = instruct.dpo_model(
        Step(folder=tmp_path, part="hh", device="cpu"),
        chain.path("instruction_model"),
        chain.path("preference_data", "hh"),
        PRESET.instructions,
        replace(PRESET.dpo, num_epochs=2, keep="last"),
        0,
    )
    kept = read_json(tmp_path / "kept.json")
    assert kept["step"] == shown["num_steps"] != shown["best_step"] and "valid_margin" in kept


def test_a_loss_that_did_not_fall_is_found(chain, tmp_path):
    for valid in ((3.0, 3.1), (3.0, 3.0)):
        rows = [{"step": step, "train_loss": 3.0, "valid_loss": loss} for step, loss in enumerate(valid)]
        (tmp_path / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert not instruct.tuning_lowered_the_loss(tmp_path)[0]
    assert not instruct.pairs_were_learnt([tmp_path])[0]


def test_every_model_answers_every_task_in_its_frame(chain):
    for name, opening in (
        ("base_answers", "# Instruction"),
        ("instruction_answers", "Below"),
        ("dpo_answers", "Below"),
    ):
        for folder in chain.parts(name):
            rows = list(read_jsonl(folder / "generations.jsonl"))
            truncated = [row["prompt_truncated"] for row in rows]
            assert len(rows) == 3 and all(row["prompt"].startswith(opening) for row in rows), folder
            assert chain.shown[name, folder.name]["examples_per_second"] > 0
            assert not any(truncated) or "mmlu" in folder.name or name == "base_answers"
    named = {(model, task) for model, task, _ in chat_evals.answer_folders(*map(chain.parts, _ANSWERS))}
    assert named == {(model, task) for model in _MODELS for task in TASKS}


_ANSWERS = ("base_answers", "instruction_answers", "dpo_answers")
_MODELS = ("base", "instruct", "dpo-hh", "dpo-verified")


def test_prediction_files_have_their_form_and_a_broken_one_is_found(chain, tmp_path):
    folders = [chain.parts(name) for name in _ANSWERS]
    assert chat_evals.prediction_files_have_their_form(*folders)[0]
    rows = read_json(chain.path("dpo_answers", "hh-alpaca_eval") / "predictions.json")
    assert {row["generator"] for row in rows} == {"dpo-hh"}
    broken = tmp_path / "dpo_answers" / "hh-alpaca_eval"
    shutil.copytree(chain.path("dpo_answers", "hh-alpaca_eval"), broken)
    write_json(broken / "predictions.json", [rows[0], rows[1] | {"generator": "another"}])
    passed, facts = chat_evals.prediction_files_have_their_form([], [], [broken])
    assert not passed and facts["faults"] == ["dpo_answers/hh-alpaca_eval"]


def test_the_leaderboard_has_every_model_by_task(chain):
    rows = [row for row in collect_scores(chain.root.parent) if not row["set_name"].endswith("against base")]
    assert {(row["model"], row["task"]) for row in rows} == {(model, task) for model in _MODELS for task in TASKS}
    hidden = chain.root / ".work" / "half"
    hidden.mkdir(parents=True)
    for name in ("scores.json", MANIFEST):
        write_json(hidden / name, [])
    assert hidden not in score_folders(chain.root.parent)


def test_judgements_name_their_judge_and_compare_with_the_base_model_too(chain):
    judges = read_json(chain.path("chat_judgements") / "judges.json")
    assert all(name.startswith("offline: ") for name in judges.values())
    rows = read_json(chain.path("chat_judgements") / "scores.json")
    against_base = {row["model"] for row in rows if row["set_name"] == "alpaca-eval sample against base"}
    assert against_base == set(_MODELS) - {"base"}
    assert len(list(read_jsonl(chain.path("chat_judgements") / "safety-dpo-verified.jsonl"))) == 3


def test_the_tax_table_has_a_line_a_task_and_says_what_is_told_from_chance(chain):
    page = read_json(chain.path("alignment_tax") / "tax.json")["page"]
    assert page.count("\n| ") >= len(TASKS) and "| task | base | instruct | dpo-hh | dpo-verified |" in page
    assert (chain.path("alignment_tax") / "tax.png").exists()
    assert chain.shown["alignment_tax", None]["throughput"]["markdown"].count("\n| safety | ") == len(_MODELS)
    apart = {"base": (0.2, 0.1, 0.3), "instruct": (0.5, 0.4, 0.6), "dpo-hh": (0.1, 0.05, 0.2), "dpo-x": (0.4, 0.3, 0.5)}
    page = chat_evals.tax_page({"gsm8k": apart})
    assert "gsm8k rises by 30.0 points from base to instruct." in page
    assert "gsm8k falls by 40.0 points from instruct to dpo-hh." in page and "to dpo-x" not in page
    assert "No difference" in chat_evals.tax_page({"gsm8k": dict.fromkeys(apart, apart["base"])})


def test_the_study_pools_seeds_and_says_what_each_kind_did_to_the_problems(chain, tmp_path):
    """Two seeds: right answers stand before and after, and the change has the interval of questions in pairs."""
    page = chain.shown["dpo_study", None]["study"]["markdown"]
    assert (
        "| hh | 6 | 50.0% (" in page
        and "| tiny | verified | " in page
        and chain.shown["dpo_study", None]["num_seeds"] == 1
    )
    root = tmp_path / "artifacts"
    for number, preset in enumerate(("tiny", "tiny_seed_1", "tiny_seed_x", "tinystories")):
        for name in ("instruction_answers", "dpo_answers", "dpo_model"):
            shutil.copytree(chain.root / name, root / preset / name)
        for part, marks in (("hh", (0, 0, 1)), ("verified", (1, 1, number % 2))):
            _mark(root / preset / "dpo_answers" / f"{part}-generated", marks)
        _mark(root / preset / "instruction_answers" / "generated", (0, 0, 1))
        kept = read_json(root / preset / "dpo_model" / "hh" / "kept.json")
        write_json(
            root / preset / "dpo_model" / "hh" / "kept.json",
            kept | {"step": 3, "valid_implicit_accuracy": 0.25 + number / 2},
        )
    folders = {
        name: [root / "tiny_seed_1" / name / part for part in STAGES[name].cells(PRESET)]
        for name in ("dpo_model", "instruction_answers", "dpo_answers")
    }
    step = Step(folder=tmp_path, preset="tiny_seed_1", device="cpu")
    shown = dpo_study.dpo_study(step, **folders)
    study = read_json(tmp_path / "study.json")
    assert shown["num_seeds"] == 2 and set(study["hh"]["by_preset"]) == {"tiny", "tiny_seed_1"}
    assert study["hh"]["reward_accuracy"]["value"] == 0.5 and study["hh"]["num_valid_pairs"] == 12
    assert study["hh"]["change"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    change = study["verified"]["change"]  # by question 1, 1 and the mean of -1 and 0
    assert study["verified"]["before"]["accuracy"] == pytest.approx(1 / 3)
    assert change["value"] == pytest.approx(0.5) == study["verified"]["after"]["accuracy"] - 1 / 3
    assert change["high"] - change["value"] == pytest.approx(1.96 * (0.75 / 3) ** 0.5, rel=1e-3)
    assert not dpo_study.rewards_tell_held_out_pairs_apart(tmp_path)[0]  # a half is not more than half
    for each in study.values():
        each["reward_accuracy"]["value"] = 0.51
    write_json(tmp_path / "study.json", study)
    assert dpo_study.rewards_tell_held_out_pairs_apart(tmp_path)[0]


def _mark(folder, marks):
    rows = list(read_jsonl(folder / "generations.jsonl"))
    write_jsonl(folder / "generations.jsonl", [row | {"correct": bool(m)} for row, m in zip(rows, marks, strict=True)])


def test_verified_pairs_are_the_tuned_models_own_answers_where_the_preset_says_so(chain, tmp_path, monkeypatch):
    """Its cell alone takes the model; what is drawn is graded, and counted for both sides."""
    drawing = replace(PRESET, preferences=replace(PRESET.preferences, num_samples=2))
    taken = [STAGES["preference_data"].taken("instruction_model", preset) for preset in (PRESET, drawing)]
    assert taken == [[], [WHOLE]]
    drawn = []

    def sampled(problems, backend, num_samples, *, seed, progress):
        drawn.append((problems[0].split, len(problems), num_samples))
        return [Preference(each.question, "1", "2", "s") for each in problems], {"samples: right": 5}

    monkeypatch.setattr(instruct, "sampled_pairs", sampled)
    shown = instruct.preference_data(
        Step(folder=tmp_path, part="verified", device="cpu"),
        chain.path("instruction_model"),
        drawing.preferences,
        drawing.instructions,
        "verified",
        0,
    )
    assert drawn == [("train", 48, 2), ("valid", 8, 2)] and (shown["num_train"], shown["num_valid"]) == (48, 8)
    assert read_json(tmp_path / "counts.json") == {"training, samples: right": 5, "validation, samples: right": 5}


def test_pages_show_what_is_to_be_read(chain):
    assert "| harmless sample |" in _page(chain, "preference_reading")
    assert "| helpful sample |" in _page(chain, "preference_reading")
    assert "| generated problems | 52 |" in _page(chain, "instruction_reading")
    failures = _page(chain, "failure_analysis")
    assert "| generated | dpo-verified | " in failures and "**safety, instruct**" in failures
    red = _page(chain, "red_teaming")
    assert red.count("| false news | ") == 1 + 4 * 3 and "**dpo-hh**, judged by offline: " in red
    agreements = _page(chain, "judge_agreements")
    assert "| hh pairs | 20 | " in agreements and "| verified pairs | 0 | a draw in every pair |" in agreements
    assert "| dpo-hh | " in _page(chain, "length_controlled_win_rates")
    assert "cancels" in _page(chain, "dpo_derivation")
    assert chat_written.derivation_holds_in_numbers(chain.path("dpo_derivation"))[0]
    assert all(not chain.shown[name, None]["is_read"] for name in ("failure_analysis", "red_teaming"))


def _page(chain, name):
    return (chain.path(name) / "page.md").read_text()


def test_a_reading_stands_on_its_page_and_is_marked_as_of_other_outputs(chain, tmp_path, monkeypatch):
    monkeypatch.setenv("CS336_SHEETS", str(tmp_path))
    mark = chain.shown["instruction_reading", None]["mark"]

    def read(label):
        (tmp_path / "tiny_chat.toml").write_text(
            f'[instructions]\nverdict = "Short answers."\nlabels = {{outputs = "{label}"}}\n'
        )
        step = Step(folder=tmp_path, device="cpu")
        return chat_written.instruction_reading(step, chain.path("instruction_data"), seed=0)

    shown = read(mark)
    assert shown["is_read"] and "**Read:** Short answers.\n" in (tmp_path / "page.md").read_text()
    assert not read("00000000")["is_read"] and "Written of other outputs" in (tmp_path / "page.md").read_text()
    (tmp_path / "tiny_chat.toml").write_text('[essays]\nverdict = "x"\n')
    with pytest.raises(UserError, match="there is no sheet 'essays'"):
        read_step = Step(folder=tmp_path, device="cpu")
        chat_written.instruction_reading(read_step, chain.path("instruction_data"), seed=0)


def test_another_checkpoint_takes_the_place_of_the_presets_own_base_model(chain, tmp_path):
    """Neither our base model nor its tokenizer is asked for, and the model that is named answers."""
    stage = STAGES["base_answers"]
    for name in ("base_answers", "instruction_model"):
        taken = [[STAGES[name].taken(each, preset) for each in ("base_model", "tokenizer")] for preset in (TINY, LLAMA)]
        assert taken == [[[WHOLE]] * 2, [[]] * 2]
    named = str(chain.path("instruction_model"))
    preset = replace(PRESET, instructions=dataclasses.replace(PRESET.instructions, base=named))
    store = Store("tiny", root=tmp_path)
    with pytest.raises(UserError, match="base_model: not there yet"):
        version_of(stage, PRESET, store, "gsm8k")
    step = Step(folder=tmp_path, part="gsm8k", device="cpu")
    _, shown, current = make(stage, preset, store, step)
    assert not current and shown["num_examples"] == 3
    assert make(stage, preset, store, step)[2]


def test_a_checkpoint_is_tuned_in_the_presets_type_and_answers_in_its_own(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    shape = ModelConfig(vocab_size=256, context_length=32, d_model=16, num_layers=1, num_heads=2, d_ff=32)
    save_policy(TransformerLM(shape, dtype=torch.bfloat16), BYTES, model)
    instructions = dataclasses.replace(LLAMA.instructions, base=str(model))
    step = Step(folder=tmp_path, device="cpu")
    assert open_base(step, None, None, instructions).model.lm_head.weight.dtype == torch.bfloat16
    tuned = open_base(step, None, None, instructions, dtype=getattr(torch, instructions.dtype))
    assert tuned.model.lm_head.weight.dtype == torch.float32
    save_policy(tuned.model, BYTES, model)
    opened = [chat_evals._open(step, model, preset.chat_evals).model for preset in (LLAMA, TINY)]
    assert [each.lm_head.weight.dtype for each in opened] == [torch.bfloat16, torch.float32]


def test_a_check_on_cells_asks_for_no_crawl(tmp_path):
    """A preset that tunes another checkpoint has none: its runs of all cells are no runs of shards."""
    tags = partition_range("hh", "verified")
    store = Store("tiny", root=tmp_path)
    assert shards_of_run(CHECKS["no_pair_is_on_both_sides"], tags, PRESET, store) is None
    with pytest.raises(UserError, match="crawl_plan: not there yet"):
        shards_of_run(CHECKS["token_ids_are_in_vocabulary"], tags, PRESET, store)


@pytest.mark.slow
def test_the_job_tunes_another_checkpoint_without_a_crawl_and_makes_nothing_twice(tmp_path):
    torch.manual_seed(0)
    model = tmp_path / "model"
    model.mkdir()
    shape = ModelConfig(vocab_size=256, context_length=416, d_model=32, num_layers=1, num_heads=2, d_ff=64)
    save_policy(TransformerLM(shape), BYTES, model)
    (tmp_path / "presets.toml").write_text(
        f"""[micro_chat]
base = "tiny"
instructions = {{base = "{model}", num_problems = 60, num_valid = 16}}
instruction_sft = {{batch_size = 8, seq_length = 64, valid_interval = 20}}
preferences = {{num_valid = 8, num_problems = 24}}
dpo = {{batch_size = 8, max_tokens = 400}}
chat_evals = {{max_mmlu = 2, max_gsm8k = 2, max_alpaca = 2, max_safety = 2, num_generated = 2, max_new_tokens = 8}}
"""
    )
    project = make_project(tmp_path, CS336_PRESETS=str(tmp_path / "presets.toml"), CS336_PRESET="micro_chat")
    printed = project.run("instruct", "micro_chat")
    for name in INSTRUCT["instruct"]:
        assert f"micro_chat/{name}" in printed
    assert "dpo_answers[verified-safety]: made" in printed and "check failed" not in printed
    again = project.run("instruct", "micro_chat")
    assert ": made in" not in again and again.count("unchanged, skipped") == printed.count(": made in")
    scores = project.python("-m", "cs336", "scores", "--preset", "micro_chat").stdout
    assert all(re.search(rf"^micro_chat +{model} +safety ", scores, re.MULTILINE) for model in _MODELS)
