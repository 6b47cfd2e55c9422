"""Preferences from a model's own answers: of one problem a right answer before a wrong one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from cs336.evals.generated_tasks import Problem, to_record
from cs336.evals.gsm8k import grade_gsm8k, gsm8k_instruction
from cs336.generate.backend import Backend, SamplingParams
from cs336.posttrain.preferences import Preference
from cs336.progress import Progress, silent
from cs336.tokens.chat import alpaca_prompt

SOURCE = "sampled answers"


def sampled_pairs(
    problems: Sequence[Problem], backend: Backend, num_samples: int, *, seed: int, progress: Progress = silent
) -> tuple[list[Preference], Mapping[str, int]]:
    """A pair of each problem that has one: a right and a wrong answer, drawn of so many samples at temperature 1.

    Problems are asked in the Alpaca form, as the model was tuned on them. A sample that the context cut off, or that
    says nothing, is neither right nor wrong.

    Returns:
        Pairs in the order of their problems; how many problems have none for which reason, and how many samples were
        "right", "wrong", or "cut off or empty".

    Source: Pang et al. 2024, arXiv:2404.19733, whose pairs are drawn and verified like this.
    """
    records = [to_record(problem) for problem in problems]
    instructions = [gsm8k_instruction(record) for record in records]
    params = SamplingParams(n=num_samples, seed=seed)
    made = backend.generate([alpaca_prompt(each) for each in instructions], params, progress=progress)
    rng = random.Random(f"sampled pairs {seed}")
    pairs: list[Preference] = []
    counts: Counter[str] = Counter()
    for record, instruction, generation in zip(records, instructions, made, strict=True):
        texts = [sample.text.strip() for sample in generation.samples if sample.finish == "end"]
        texts = [text for text in texts if text]
        right = [text for text in texts if grade_gsm8k(record, text).correct]
        wrong = [text for text in texts if text not in right]
        counts["samples: right"] += len(right)
        counts["samples: wrong"] += len(wrong)
        counts["samples: cut off or empty"] += num_samples - len(texts)
        if right and wrong:
            pairs.append(Preference(instruction, rng.choice(right), rng.choice(wrong), SOURCE))
        else:
            counts["problems: never wrong" if right else "problems: never right"] += 1
    return pairs, dict(counts)
