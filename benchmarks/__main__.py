"""`python -m benchmarks SUBJECT`: measure one subject; without a subject, list them.

A subject is a module of this package that satisfies `benchmarks.measure.Subject`; adding one means
adding its file.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path

import benchmarks
from benchmarks.measure import Subject, at_least_one, run_subject
from cs336.files import UserError

MACHINERY = {"__main__", "measure", "experiments", "peers", "corpus", "pages", "pages_work", "studies"}
MACHINERY |= {
    "counters",
    "course_step",
    "dedup_corpus",
    "dedup_work",
    "graded_answers",
    "gpu_tables",
    "growth_plots",
    "tokenizer_plots",
    "tokenizer_work",
}
MACHINERY |= {"rank_studies", "rollouts"}
RESULTS = Path(__file__).parent / "results"


def subject_names() -> list[str]:
    """Names of the subjects: the package's modules but its machinery."""
    return sorted({module.name for module in pkgutil.iter_modules(benchmarks.__path__)} - MACHINERY)


def main(arguments: list[str] | None = None) -> int:
    """Run one subject; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    names = subject_names()
    if not arguments or arguments[0] in ("-h", "--help"):
        _print_overview(names)
        return 0
    name, *rest = arguments
    if name not in names:
        print(f"no subject {name!r}; choose one of: {', '.join(names)}", file=sys.stderr)
        return 2
    subject: Subject = importlib.import_module(f"benchmarks.{name}")
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=subject.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--repeats", type=at_least_one, default=5, help="timed runs of each contender, by turns (default %(default)s)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        metavar="FOLDER",
        help="where the rows are appended, as SUBJECT.jsonl (default benchmarks/results)",
    )
    subject.add_arguments(parser)
    options = parser.parse_args(rest)
    instead = getattr(subject, "instead_of_cases", lambda options: None)
    try:
        status = instead(options)
        return run_subject(name, subject, options) if status is None else status
    except UserError as error:
        print(error, file=sys.stderr)
        return 1


def _print_overview(names: list[str]) -> None:
    print("usage: python -m benchmarks SUBJECT [--help] [options]\n\nSubjects:")
    for name in names:
        summary = (importlib.import_module(f"benchmarks.{name}").__doc__ or "").strip().split("\n")[0]
        print(f"  {name:<15} {summary}")
    print(
        "\nOurs and the established tools do the same work on the same input, by turns, in one run. Tools that"
        "\nare not installed are left out with a message. Each figure becomes a row in benchmarks/results/. The last"
        "\nlines are the ratios ours / best peer (above 1: ours is faster), the very last the smallest of them."
        "\nMeasure on an idle machine."
    )


if __name__ == "__main__":
    sys.exit(main())
