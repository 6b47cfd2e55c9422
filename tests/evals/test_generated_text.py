"""Generated problems as a source of the crawl."""

import pytest

from cs336.crawl.several import Several
from cs336.evals.generated_tasks import GeneratedConfig, TraceConfig, generate_problem, to_trace
from cs336.evals.generated_text import GeneratedText
from cs336.extract.shard import ExtractConfig, extract_records
from cs336.preset_values import changed
from cs336.presets import TINY

SOURCE = GeneratedText(num_traces=10, num_drills=5, lines_per_drill=3, num_shards=2)


def _read(source, folder):
    documents = []
    for shard in source.plan():
        source.fetch(shard, folder)
        documents.append(extract_records(folder / f"{shard.name}.warc.gz", ExtractConfig())[0])
    return documents


def test_the_shards_hold_each_trace_and_drill_once(tmp_path):
    shards = _read(SOURCE, tmp_path)
    addresses = [document.url for documents in shards for document in documents]
    wanted = {f"generated://trace/{index}" for index in range(10)} | {
        f"generated://drill/{index}" for index in range(5)
    }
    assert len(addresses) == 15 and set(addresses) == wanted
    assert [len(documents) for documents in shards] == [7, 8]
    kinds = [address.split("/")[2] for address in addresses[:7]]
    assert kinds == ["trace", "trace", "trace", "drill", "trace", "trace", "drill"], "drills lie between the traces"
    texts = {document.url: document.text for documents in shards for document in documents}
    trace = to_trace(generate_problem(GeneratedConfig(), "train", 3), TraceConfig())
    assert texts["generated://trace/3"] == trace["prompt"] + trace["response"]
    assert texts["generated://drill/0"].count("=") >= 3 and len(texts["generated://drill/0"].splitlines()) == 3


def test_a_shard_made_again_has_the_same_bytes_and_other_problems_other_ones(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    other = changed(SOURCE, {"problems": {"levels": [1]}})
    for name, source in (("a", SOURCE), ("b", SOURCE), ("c", other)):
        source.fetch(source.plan()[0], tmp_path / name)
    first, again, others = ((tmp_path / name / "generated-00000.warc.gz").read_bytes() for name in "abc")
    assert first == again != others
    assert SOURCE.shard_identity() != other.shard_identity() and SOURCE.identity() != other.identity()


def test_processes_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("cs336.evals.generated_text._PER_TASK", 2)
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        SOURCE.fetch(SOURCE.plan()[1], tmp_path / str(workers), num_workers=workers)
    first, second = ((tmp_path / name / "generated-00001.warc.gz").read_bytes() for name in "12")
    assert first == second


def test_a_preset_of_a_file_may_mix_it_with_texts():
    described = {"kind": "generated", "num_traces": 8, "traces": {"direct": 0, "template": "r1_zero"}}
    texts = {"kind": "text", "paths": ["a.txt"]}
    preset = changed(TINY, {"source": {"kind": "several", "sources": [texts, described]}})
    assert isinstance(preset.source, Several)
    assert preset.source.sources[1] == GeneratedText(num_traces=8, traces=TraceConfig(direct=0.0, template="r1_zero"))
    with pytest.raises(ValueError, match="has no setting 'style'"):
        changed(TINY, {"source": described | {"traces": {"style": "digits"}}})


def test_without_tags_a_trace_is_question_work_and_answer(tmp_path):
    steps = TraceConfig(direct=0.0, digits=0.0)
    plain = changed(SOURCE, {"tagged": False, "num_drills": 0, "traces": {"direct": 0, "digits": 0}})
    texts = {document.url: document.text for documents in _read(plain, tmp_path) for document in documents}
    problem = generate_problem(GeneratedConfig(), "train", 4)
    thought = to_trace(problem, steps)["response"].split(" </think>")[0].strip()
    assert texts["generated://trace/4"] == f"{problem.question}\n{thought} The answer is {problem.answer}."
    assert not any("<" in text for text in texts.values())
    assert plain.shard_identity() != changed(plain, {"tagged": True}).shard_identity()


def test_a_shard_needs_a_document():
    with pytest.raises(ValueError, match="give each shard one"):
        GeneratedText(num_traces=3, num_shards=4)
