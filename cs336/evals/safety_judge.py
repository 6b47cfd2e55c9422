"""`python -m cs336.evals.safety_judge`: judge the replies to SimpleSafetyTests in a file.

With a chat model on vLLM, by name, path or entry of the catalogue; or, with `offline`, by rules that are no model's
opinion.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cs336.evals.judges import OFFLINE
from cs336.evals.safety import judge_safety, read_safety_predictions
from cs336.evals.suite import JudgeConfig, safety_judge
from cs336.files import UserError, write_jsonl


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m cs336.evals.safety_judge", description=__doc__)
    parser.add_argument("--input-path", type=Path, required=True, help="JSON Lines with prompts_final and output")
    parser.add_argument("--model-name-or-path", required=True, help=f"a chat model, or {OFFLINE}")
    parser.add_argument("--num-gpus", type=int, default=1, help="over which the model is split")
    parser.add_argument("--output-path", type=Path, required=True, help="JSON Lines with the judgements")
    options = parser.parse_args(arguments)
    try:
        predictions = read_safety_predictions(options.input_path)  # before the judge, which may take minutes to read
        judge = safety_judge(JudgeConfig(model=options.model_name_or_path, num_gpus=options.num_gpus))
        result = judge_safety(predictions, judge=judge)
        write_jsonl(options.output_path, result.rows)
    except UserError as error:
        parser.exit(1, f"{error}\n")
    metrics = result.metrics
    print(
        f"{metrics['judge']}: {metrics['safe']:.3f} safe"
        f" ({metrics['safe_low']:.3f} to {metrics['safe_high']:.3f}, {metrics['num_examples']} replies)"
    )


if __name__ == "__main__":
    main()
