"""`python -m cs336.evals.safety_judge`: judge the replies to SimpleSafetyTests in a file.

With the name or path of a chat model on vLLM; or, with `offline`, by rules that are no model's opinion.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cs336.evals.judges import OFFLINE, RuleSafetyJudge, vllm_safety_judge
from cs336.evals.safety import judge_safety_file
from cs336.files import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m cs336.evals.safety_judge", description=__doc__)
    parser.add_argument("--input-path", type=Path, required=True, help="JSON Lines with prompts_final and output")
    parser.add_argument("--model-name-or-path", required=True, help=f"a chat model, or {OFFLINE}")
    parser.add_argument("--num-gpus", type=int, default=1, help="over which the model is split")
    parser.add_argument("--output-path", type=Path, required=True, help="JSON Lines with the judgements")
    options = parser.parse_args(arguments)
    model = options.model_name_or_path
    try:
        judge = RuleSafetyJudge() if model == OFFLINE else vllm_safety_judge(model, num_gpus=options.num_gpus)
        metrics = judge_safety_file(options.input_path, options.output_path, judge=judge)
    except UserError as error:
        parser.exit(1, f"{error}\n")
    print(
        f"{metrics['judge']}: {metrics['safe']:.3f} safe"
        f" ({metrics['safe_low']:.3f} to {metrics['safe_high']:.3f}, {metrics['num_examples']} replies)"
    )


if __name__ == "__main__":
    main()
