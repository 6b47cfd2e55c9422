"""Experiments in the graph: cells as partitions, divergence as a result, the best rate by lineage."""

import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import experiments
from cs336.files import read_jsonl
from cs336.preset_lookup import find_preset
from cs336.presets import TINY
from cs336.store import Store
from cs336.train.experiments import OUTCOME_FILE, batch_size_runs
from cs336_assets.asset import Step, part_names, version_of
from cs336_assets.binding import _several_at_once
from cs336_assets.experiments import LIMIT_FILE, STUDY_FILE, learning_rate_study
from cs336_assets.flow import STAGES
from cs336_assets.speedrun import the_rules_were_kept


@pytest.fixture(scope="module")
def experimented(finished, tmp_path_factory):
    """The finished project with all its experiments, two runs at a time."""
    project = finished.copy(tmp_path_factory.mktemp("experiments"), CS336_RUNS_AT_ONCE="2", CS336_WORKERS="2")
    project.run("experiments")
    return project


def _metadata(folder):
    return json.loads((folder / "manifest.json").read_text())["metadata"]


@pytest.mark.slow
def test_every_run_of_every_grid_is_made_and_logged(experimented):
    log = [json.loads(line) for line in (experimented.artifacts / "experiment_log" / "log.jsonl").open()]
    assert [(row["experiment"], row["run"]) for row in log] == [
        ("base_model", "base_model"),
        ("speedrun_model", "speedrun_model"),
        ("learning_rates", "rate-0.01"),
        ("learning_rates", "rate-10000"),
        ("batch_sizes", "batch-1-rate-x1"),
        ("batch_sizes", "batch-limit-rate-x1"),
        *(("ablations", f"{name}-seed-0") for name in ("baseline", "no-norm", "post-norm", "no-positions", "silu")),
        ("context_lengths", "context-32"),
        ("vocab_sizes", "vocab-300"),
    ]


@pytest.mark.slow
def test_a_run_whose_loss_is_no_number_is_a_result(experimented):
    study = json.loads((experimented.artifacts / "learning_rate_study" / STUDY_FILE).read_text())
    assert study["learning_rate"] == 0.01 and study["lowest_diverged"] == 1e4
    lost = study["runs"]["rate-10000"]
    assert "nan" in lost["diverged"] or "inf" in lost["diverged"]
    assert str(experimented.folder) not in lost["diverged"]
    assert not (experimented.artifacts / "learning_rates" / "rate-10000" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_best_rate_is_carried_on_by_lineage(experimented):
    for run in ("baseline-seed-0", "no-norm-seed-0"):
        folder = experimented.artifacts / "ablations" / run
        described = json.loads((folder / "run.json").read_text())
        assert described["train"]["learning_rate"] == pytest.approx(0.01)
        assert "learning_rate_study" in json.loads((folder / "manifest.json").read_text())["inputs"]
        assert not (folder / "checkpoints").exists()
    limit = json.loads((experimented.artifacts / "batch_sizes" / "batch-limit-rate-x1" / OUTCOME_FILE).read_text())
    assert limit["batch_size"] == 8 and limit["learning_rate"] == pytest.approx(0.01 * 2**0.5)


@pytest.mark.slow
def test_studies_show_tables_curves_and_samples(experimented):
    assert "| no-norm |" in _metadata(experimented.artifacts / "ablation_study")["summary"]["markdown"]
    side = _metadata(experimented.artifacts / "side_studies")["summary"]["markdown"]
    assert "| context-32 |" in side and "| vocab-300 |" in side
    assert "| 0.8 | 0.9 |" in _metadata(experimented.artifacts / "generated_samples")["fluency"]["markdown"]
    for name in ("learning_rate_study/rates.png", "batch_size_study/rates.png", "ablation_study/curves.png"):
        assert (experimented.artifacts / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_speedrun_keeps_its_clock_and_is_scored(experimented):
    facts = _metadata(experimented.artifacts / "speedrun_model")
    rows = [json.loads(line) for line in (experimented.artifacts / "speedrun_model" / "metrics.jsonl").open()]
    assert rows[-2]["seconds"] <= 3.0 and facts["num_steps"] == len(rows) < 100_000
    scores = json.loads((experimented.artifacts / "speedrun_scores" / "scores.json").read_text())
    assert {row["model"] for row in scores} == {"speedrun_model"}


@pytest.mark.parametrize(
    ("seconds", "kept"), [([30.0, 59.999, 60.4], True), ([30.0, 60.001, 60.4], False), ([61.0], True)]
)
def test_no_step_of_a_speedrun_may_begin_after_its_time(seconds, kept, tmp_path):
    speedrun = TINY.speedrun
    (tmp_path / "config.json").write_text(json.dumps(asdict(replace(speedrun.model, vocab_size=512))))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"seconds": each}) + "\n" for each in seconds))
    assert speedrun.train.max_seconds == 60.0
    assert the_rules_were_kept(tmp_path, speedrun)[0] == kept


@pytest.mark.slow
def test_runs_become_rows_and_folders_that_are_adopted(experimented, finished, tmp_path, capsys):
    results, runs = tmp_path / "experiments.jsonl.gz", tmp_path / "runs"
    for _ in range(2):  # the second time the rows are replaced
        assert experiments.main([str(experimented.artifacts), "--results", str(results), "--runs", str(runs)]) == 0
    assert "| learning_rates/rate-0.01 | 0.01 | 4 |" in capsys.readouterr().out
    rows = {row["case"]: row for row in read_jsonl(results)}
    assert len(rows) == len(list(read_jsonl(results))) >= 12
    assert rows["learning_rates/rate-10000"]["diverged"] and rows["base_model"]["curve"][-1][2] > 0
    assert not list(runs.rglob("*.safetensors")) and not list(runs.rglob("metrics.jsonl"))
    other = finished.copy(tmp_path / "other")
    shutil.rmtree(other.artifacts / "base_model"), shutil.rmtree(other.artifacts / "perplexity")
    done = other.python("-m", "cs336", "adopt", "--replace", str(runs))
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert {"micro/base_model", "micro/learning_rates[rate-0.01]"} <= set(said[:-2])
    assert any(line.endswith(" adopted: same code, settings and inputs as here") for line in said)
    assert "other code" not in done.stdout  # some inputs, such as other vocabularies, were not copied
    assert experiments.main([str(tmp_path / "nowhere"), "--results", str(results)]) == 1
    assert "nowhere: holds no training run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_longer_grid_makes_only_what_is_new(experimented, tmp_path):
    text = Path(experimented.environment["CS336_PRESETS"]).read_text()
    longer = tmp_path / "presets.toml"
    longer.write_text(text.replace("learning_rates = [1e-2, 1e4]", "learning_rates = [2e4, 1e-2, 1e4]"))
    assert longer.read_text() != text
    project = experimented.copy(tmp_path / "project", CS336_PRESETS=str(longer))
    printed = project.run("learning_rates")
    assert "learning_rates[rate-20000]: made" in printed and "learning_rate_study: made" in printed
    assert "learning_rates[rate-0.01]: unchanged" in printed and "learning_rates[rate-10000]: unchanged" in printed
    for job in ("batch_sizes", "ablations"):  # the best rate is what it was
        runs = [line for line in project.run(job).splitlines() if f"/{job}[" in line]
        assert runs and all("unchanged" in line for line in runs)


@pytest.mark.slow
def test_a_sweep_is_shared_by_naming_its_cells(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    project.run("learning_rates", "micro", "--cells", "rate-0.01...rate-0.01")
    assert [folder.name for folder in (project.artifacts / "learning_rates").iterdir()] == ["rate-0.01"]
    assert not (project.artifacts / "learning_rate_study").exists()
    printed = project.run("learning_rates")
    assert "learning_rates[rate-0.01]: unchanged" in printed and "learning_rates[rate-10000]: made" in printed
    printed = project.run("batch_sizes", "micro", "--cells", "batch-limit-rate-x1")
    assert "batch_size_limit: made" in printed and "[batch-limit-rate-x1]: made" in printed
    assert "[batch-1-rate-x1]" not in printed and "batch_size_study" not in printed
    printed = project.run("ablations", "micro", "--cells", "no-norm-seed-0...no-positions-seed-0")
    made = [line.partition("[")[2].partition("]")[0] for line in printed.splitlines() if ": made in" in line]
    assert sorted(made) == ["no-norm-seed-0", "no-positions-seed-0", "post-norm-seed-0"]
    for job, cells, says in (
        ("ablations", "silu", "silu-seed-0"),
        ("ablations", "silu-seed-0...baseline-seed-0", "no such runs"),
        ("all", "silu-seed-0", "only the runs of an experiment"),
        ("ablations", "", "no such runs"),
    ):
        done = project.python("-m", "cs336", "run", "--preset", "micro", "--job", job, "--cells", cells)
        assert done.returncode == 1 and says in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.slow
def test_only_what_is_taken_of_a_study_enters_the_runs_built_on_it(experimented, tmp_path, monkeypatch):
    project = experimented.copy(tmp_path / "project")
    monkeypatch.setenv("CS336_PRESETS", project.environment["CS336_PRESETS"])
    preset, store = find_preset("micro"), Store("micro", project.folder / "artifacts")
    built = ("batch_sizes", "ablations", "context_lengths", "vocab_sizes")

    def versions():
        parts = {name: part_names(STAGES[name], preset, store)[0] for name in built}
        return {name: version_of(STAGES[name], preset, store, part).fingerprint for name, part in parts.items()}

    def changed(asset, file, **facts):
        """Which runs are made again when a study is made anew and says something else."""
        before = versions()
        for path, news in (("manifest.json", {"fingerprint": f"{facts}"}), (file, facts)):
            path = store.path(asset) / path
            path.write_text(json.dumps(json.loads(path.read_text()) | news))
        return {name for name, version in versions().items() if version != before[name]}

    assert changed("learning_rate_study", STUDY_FILE, valid_loss=0.5, lowest_diverged=2.0, runs={}) == set()
    assert changed("learning_rate_study", STUDY_FILE, learning_rate=0.02) == set(built)
    assert changed("learning_rate_study", STUDY_FILE, batch_size=2) == set(built)
    assert changed("batch_size_limit", LIMIT_FILE, peak_bytes=1, measured=True) == set()
    assert changed("batch_size_limit", LIMIT_FILE, batch_size=2) == {"batch_sizes"}


@pytest.mark.slow
def test_a_study_is_a_plain_function(experimented, tmp_path):
    runs = sorted((experimented.artifacts / "learning_rates").iterdir())
    shown = learning_rate_study(Step(tmp_path), learning_rates=runs)
    assert shown["lowest_diverged_rate"] == 1e4 and shown["best_over_edge"] == pytest.approx(1e-6)


def test_parts_made_side_by_side_keep_their_order_and_their_failure():
    def work(part):
        if part == "bad":
            raise RuntimeError("bad part")
        return part

    assert list(_several_at_once(work, ["a", "b", "c"], 2)) == [("a", "a"), ("b", "b"), ("c", "c")]
    made = []
    with pytest.raises(RuntimeError, match="bad part"):
        for part, _ in _several_at_once(work, ["a", "bad", *"cdefgh"], 2, alone={"c"}):
            made.append(part)
    assert made == ["a"]


def test_what_needs_the_device_for_itself_waits_for_the_others():
    running, company = set(), {}

    def work(part):
        running.add(part)
        time.sleep(0.05)
        company[part] = running - {part}
        running.discard(part)

    order = [part for part, _ in _several_at_once(work, ["limit", "a", "clock", "b"], 2, alone={"limit", "clock"})]
    assert order == ["a", "b", "limit", "clock"]
    assert company["limit"] == company["clock"] == set() and company["a"] | company["b"]


def test_runs_at_the_memory_limit_run_alone():
    runs = batch_size_runs(TINY.model, TINY.train, TINY.experiments)
    alone = {name for name, run in runs.items() if run.runs_alone}
    assert alone == {name for name in runs if name.startswith("batch-limit-")} and alone
