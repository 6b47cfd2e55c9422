"""All stages and checks, declared by importing their modules in the order the data flows."""

# isort: off
from cs336_assets import crawl, extract, filters, dedup, tokenizer, tokenizer_study, tokens  # noqa: F401
from cs336_assets import pretrain, experiments, evals, speedrun, written  # noqa: F401

# isort: on
from cs336_assets.asset import CHECKS, STAGES

__all__ = ["CHECKS", "STAGES"]
