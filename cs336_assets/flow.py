"""All stages and checks in the order the data flows, whichever module was imported first."""

from __future__ import annotations

import sys
from typing import Any

# isort: off
from cs336_assets import crawl, extract, filters, filter_quality, dedup, sheets, tokenizer, tokenizer_study, tokens
from cs336_assets import pretrain, experiments, data_ablation, evals, speedrun, submission
from cs336_assets import reasoning, reasoning_checks, reasoning_scores, reasoning_failures, reasoning_studies
from cs336_assets import reasoning_written, written
from cs336_assets import kernels, parallel, scaling, scaling_study, scaling_exercise
from cs336_assets import instruct, chat_evals, dpo_study, chat_written

# isort: on
from cs336_assets.asset import CHECKS, STAGES

__all__ = ["CHECKS", "STAGES"]

_FLOW = [
    crawl,
    extract,
    filters,
    filter_quality,
    dedup,
    sheets,
    tokenizer,
    tokenizer_study,
    tokens,
    pretrain,
    experiments,
    data_ablation,
    evals,
    speedrun,
    submission,
    reasoning,
    reasoning_checks,
    reasoning_scores,
    reasoning_failures,
    reasoning_studies,
    reasoning_written,
    written,
    kernels,
    parallel,
    scaling,
    scaling_study,
    scaling_exercise,
    instruct,
    chat_evals,
    dpo_study,
    chat_written,
]


def _put_in_order(declared: dict[str, Any]) -> None:
    ordered = sorted(declared.items(), key=lambda item: _FLOW.index(sys.modules[item[1].function.__module__]))
    declared.clear()
    declared.update(ordered)


_put_in_order(STAGES)
_put_in_order(CHECKS)
