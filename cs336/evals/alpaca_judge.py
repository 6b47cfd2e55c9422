"""`python -m cs336.evals.alpaca_judge`: compare the outputs in an AlpacaEval prediction file with GPT-4 Turbo's.

With a chat model on vLLM, by name, path or entry of the catalogue; or, with `offline`, by rules that are no model's
opinion.
The prediction file is also what the `alpaca_eval` command reads.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cs336 import catalog
from cs336.evals.alpaca_eval import (
    difficulty_of,
    judge_alpaca_eval,
    read_annotations,
    read_predictions,
    references_of,
)
from cs336.evals.judges import OFFLINE, RANKING_NUM_GPUS
from cs336.evals.suite import JudgeConfig, pair_judge
from cs336.files import UserError, write_jsonl


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m cs336.evals.alpaca_judge", description=__doc__)
    parser.add_argument("--input-path", type=Path, required=True, help="JSON array of predictions")
    parser.add_argument("--model-name-or-path", required=True, help=f"a chat model, or {OFFLINE}")
    parser.add_argument("--num-gpus", type=int, default=RANKING_NUM_GPUS, help="over which the model is split")
    parser.add_argument("--reference-path", type=Path, help="JSON array of another opponent's outputs")
    parser.add_argument("--output-path", type=Path, required=True, help="JSON Lines with the annotations")
    options = parser.parse_args(arguments)
    try:
        predictions = read_predictions(options.input_path)
        if options.reference_path:
            references, difficulty = read_predictions(options.reference_path), None
        else:
            stored = [read_annotations(path) for path in catalog.require_files("alpaca-eval-preferences")]
            references, difficulty = references_of(stored[0]), difficulty_of(stored)
        judge = pair_judge(JudgeConfig(model=options.model_name_or_path, num_gpus=options.num_gpus))
        result = judge_alpaca_eval(predictions, references, judge=judge, difficulty=difficulty)
        write_jsonl(options.output_path, result.rows)
    except (UserError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    metrics = result.metrics
    for name in ("win_rate", "lc_win_rate"):
        print(f"{name} {metrics[name]:.4f} ({metrics[name + '_low']:.4f} to {metrics[name + '_high']:.4f})")
    print(f"judge {metrics['judge']}, {metrics['num_examples']} pairs, {metrics['num_unjudged']} replies not read")


if __name__ == "__main__":
    main()
