"""The graph as it is declared: every asset explains itself, and keys never mix presets."""

import ast
import inspect
from pathlib import Path

import dagster as dg
import pytest
import yaml

from cs336.presets import TINY
from cs336_assets.asset import CELL
from cs336_assets.flow import CHECKS, STAGES
from cs336_assets.graph import build_definitions
from cs336_assets.selections import DATA_ABLATION, EXPERIMENTS, GROUPS, INSTRUCT, KERNELS, REASONING, SCALING
from tests.assets.conftest import ROOT

FLOW = ["crawl", "extract", "filters", "data_quality", "dedup", "sheets", "tokenizer", "tokens", "pretrain"]
FLOW += ["experiments", "data_ablation", "evals", "reasoning", "written", "kernels", "parallel", "scaling", "instruct"]
# Not needed by anything else, so run by themselves.
APART = {"experiments", "data_ablation", "data_quality", "kernels", "parallel", "reasoning", "scaling", "instruct"}
LONGEST_BODY = 40


@pytest.fixture(scope="module", params=["tiny", "course", "2b"])
def graph(request):
    definitions = build_definitions(request.param)
    return request.param, definitions.resolve_asset_graph(), definitions


def test_every_key_starts_with_its_preset(graph):
    preset, assets, _ = graph
    for key in assets.materializable_asset_keys:
        assert key.path[0] == preset


def test_every_asset_has_group_description_owner_kinds_code_version_and_code_reference(graph):
    preset, assets, _ = graph
    groups = [f"{preset}_{place}_{group}" for place, group in enumerate(FLOW, 1)]
    for key in assets.materializable_asset_keys:
        node = assets.get(key)
        assert node.group_name in groups, key
        assert len(node.description or "") > 40, key
        assert node.owners and node.kinds and node.code_version, key
        assert "dagster/code_references" in node.metadata, key


@pytest.mark.parametrize("name", list(STAGES))
def test_assets_are_short_and_documented(name):
    stage = STAGES[name]
    function = ast.parse(inspect.getsource(stage.function)).body[0]
    assert isinstance(function, ast.FunctionDef) and ast.get_docstring(function)
    first = function.body[1] if len(function.body) > 1 else function.body[0]
    assert (function.end_lineno or 0) - first.lineno < LONGEST_BODY


def test_runs_stand_below_the_study_whose_rate_they_take(graph):
    preset, assets, _ = graph
    for name in ("batch_sizes", "ablations", "context_lengths", "vocab_sizes"):
        assert dg.AssetKey([preset, "learning_rate_study"]) in assets.get(dg.AssetKey([preset, name])).parent_keys


def test_groups_stand_in_the_order_of_the_flow():
    seen = list(dict.fromkeys(stage.group for stage in STAGES.values()))
    assert seen == FLOW


def test_an_asset_reads_only_what_stands_before_it():
    names = list(STAGES)
    for place, stage in enumerate(STAGES.values()):
        for upstream in stage.inputs:
            assert names.index(upstream) < place, f"{stage.name} reads {upstream}"


@pytest.mark.parametrize("scores", ["leaderboard", "alignment_tax"])
def test_lineage_runs_from_the_crawl_to_the_scores(graph, scores):
    _, assets, _ = graph
    key = next(key for key in assets.materializable_asset_keys if key.path[-1] == scores)
    upstream, waiting = set(), [key]
    while waiting:
        for parent in assets.get(waiting.pop()).parent_keys:
            if parent not in upstream:
                upstream.add(parent)
                waiting.append(parent)
    names = {key.path[-1] for key in upstream}
    last = {"leaderboard": {"mmlu", "gsm8k", "perplexity"}, "alignment_tax": {"instruction_model", "dpo_model"}}
    assert {"crawl_plan", "crawl", "token_shards", "base_model", *last[scores]} <= names


def test_bad_data_stops_the_flow():
    blocking = {check.function.__name__: check.asset for check in CHECKS.values() if check.blocking}
    assert {"crawl", "extracted_text", "filtered_text", "deduplicated_text", "token_shards", "base_model"} <= set(
        blocking.values()
    )
    assert blocking["no_evaluation_leaked"] == "deduplicated_text"


def test_a_shards_download_is_gone_on_with_and_waits_for_a_place_in_a_pool_that_has_a_limit(graph):
    preset, assets, _ = graph
    assert STAGES["crawl"].resumable
    assert assets.get(dg.AssetKey([preset, "crawl"])).pools == {"crawl"}
    for home, limit in (("dagster_home", 1), ("dagster_home/cluster", 16)):
        settings = yaml.safe_load((ROOT / home / "dagster.yaml").read_text())
        assert settings["concurrency"]["pools"] == {"default_limit": limit}
        assert settings["run_monitoring"]["free_slots_after_run_end_seconds"] > 0  # of a run that was killed


def test_jobs_cover_the_graph(graph):
    preset, _, definitions = graph
    for job in ("plan", *GROUPS):
        assert definitions.resolve_job_def(f"{preset}_{job}")
    assert set(GROUPS["all"]) == set(FLOW) - APART
    apart = {"experiments": EXPERIMENTS, "data_ablation": DATA_ABLATION, "kernels": KERNELS, "scaling": SCALING}
    apart["instruct"] = INSTRUCT
    for group, jobs in apart.items():
        listed = [name for names in jobs.values() for name in names]
        assert listed == [name for name, stage in STAGES.items() if stage.group == group], "in their order"
    # The experiments around the chain are more cells of the same assets.
    listed = list(dict.fromkeys(name for names in REASONING.values() for name in names))
    assert listed == [name for name, stage in STAGES.items() if stage.group == "reasoning"]


def test_modules_of_the_graph_stay_short():
    for path in Path(inspect.getfile(build_definitions)).parent.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


def test_settings_of_an_asset_are_fields_of_the_preset():
    for declared in [*STAGES.values(), *CHECKS.values()]:
        for name in declared.settings:
            assert hasattr(TINY, name) or (name == CELL and declared.cells), declared
