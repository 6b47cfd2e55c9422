"""Generated problems with worked traces, and calculations, as a text to pretrain on: a source of the crawl."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cs336.crawl.source import CrawlStats, Shard
from cs336.evals.generated_tasks import GeneratedConfig, TraceConfig, generate_drill, generate_problem, to_trace
from cs336.files import replacing
from cs336.processes import map_ordered
from cs336.progress import Progress, silent

_PER_TASK = 500  # documents that a process writes at a time


@dataclass(frozen=True, kw_only=True)
class GeneratedText:
    """Documents of training problems alone: their traces, as prompt and response, and pages of calculations.

    Attributes:
        num_traces: documents with a problem and its trace, the first of the training split's stream.
        num_drills: documents of calculations without a story.
        lines_per_drill: calculations in each of them.
        problems, traces: which problems, and how they are worked out.
        tagged: traces stand as prompt and response; else as question, work and answer, without a template: such a
            model knows how to solve, but not yet how it is asked.
        num_shards: files; each holds an equal share of both kinds.
    """

    num_traces: int
    num_drills: int = 0
    lines_per_drill: int = 10
    problems: GeneratedConfig = field(default_factory=GeneratedConfig)
    traces: TraceConfig = field(default_factory=TraceConfig)
    tagged: bool = True
    num_shards: int = 4

    def __post_init__(self) -> None:
        if min(self.num_traces, self.num_drills) < 0 or self.num_traces + self.num_drills < self.num_shards:
            raise ValueError(
                f"{self.num_traces} traces and {self.num_drills} drills are too few for {self.num_shards} shards;"
                " give each shard one"
            )
        if self.num_shards < 1 or self.lines_per_drill < 1:
            raise ValueError(f"num_shards and lines_per_drill are 1 or more, got {self}")

    def identity(self) -> Any:
        """All settings."""
        return {"source": "generated-text", **asdict(self)}

    def shard_identity(self) -> Any:
        """How documents are written; which ones is what the items say."""
        settings = {"problems": asdict(self.problems), "traces": asdict(self.traces)}
        forms = {"lines_per_drill": self.lines_per_drill, "tagged": self.tagged}
        return {"source": "generated-text", **forms, **settings}

    def plan(self, *, progress: Progress = silent) -> list[Shard]:
        """Equal shares of the traces and of the drills, in order."""

        def part(count: int, number: int) -> list[int]:
            return [count * number // self.num_shards, count * (number + 1) // self.num_shards]

        return [
            Shard(
                f"generated-{number:05}",
                ({"traces": part(self.num_traces, number), "drills": part(self.num_drills, number)},),
            )
            for number in range(self.num_shards)
        ]

    def fetch(self, shard: Shard, folder: Path, *, num_workers: int = 1, progress: Progress = silent) -> CrawlStats:
        """Write `<name>.warc.gz`: a `warcinfo` record, then one `conversion` record per document.

        Traces and drills alternate, in proportion to their numbers.
        """
        start = time.monotonic()
        names = list(_names(shard))
        workers = num_workers if len(names) > 4 * _PER_TASK else 1  # a process takes a second to start
        stats = CrawlStats()
        target = folder / f"{shard.name}.warc.gz"
        info = f"software: cs336\r\nformat: WARC File Format 1.0\r\nisPartOf: {shard.name}\r\n"
        with replacing(target) as file:
            _write(file, "warcinfo", f"generated://{shard.name}", info, content_type="application/warc-fields")
            stats.num_records["warcinfo"] += 1
            documents = map_ordered(self.document, names, num_workers=workers, per_task=_PER_TASK)
            for address, text in progress(documents, total=len(names), unit="documents", label=shard.name):
                _write(file, "conversion", address, text, content_type="text/plain")
                stats.num_records["conversion"] += 1
        stats.num_fetches["generated"] = stats.num_records["conversion"]
        stats.num_bytes = target.stat().st_size
        stats.fetch_seconds = time.monotonic() - start
        return stats

    def document(self, name: tuple[str, int]) -> tuple[str, str]:
        """Address and text of the "trace" or "drill" of a number."""
        kind, index = name
        address = f"generated://{kind}/{index}"
        if kind == "drill":
            return address, generate_drill(self.problems, index, num_lines=self.lines_per_drill)
        trace = to_trace(generate_problem(self.problems, "train", index), self.traces)
        return address, _text_of(trace, tagged=self.tagged)


def _names(shard: Shard) -> Iterator[tuple[str, int]]:
    """A shard's documents: its drills spread among its traces."""
    (item,) = shard.items
    traces, drills = (range(*item[kind]) for kind in ("traces", "drills"))
    written = 0  # drills
    for number, index in enumerate(traces, 1):
        yield "trace", index
        while written < len(drills) * number // len(traces):
            yield "drill", drills[written]
            written += 1
    for index in drills[written:]:
        yield "drill", index


def _text_of(trace: dict[str, Any], *, tagged: bool) -> str:
    if tagged:
        return trace["prompt"] + trace["response"]
    thought, _, answer = trace["response"].partition(" </think> <answer>")
    return f"{trace['question']}\n{thought.strip()} The answer is {answer.removesuffix('</answer>')}."


def _write(file: Any, kind: str, address: str, text: str, *, content_type: str) -> None:
    from cs336.crawl.warc import write_record  # its package is not needed to ask or to grade

    write_record(
        file,
        kind,
        url=None if kind == "warcinfo" else address,
        content_type=content_type,
        block=text.encode(),
        record_id=f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, address)}>",
    )
