"""What both forms of vLLM are asked, in the words that they share, and how both tell the end of a text."""

from __future__ import annotations

from typing import Any

from cs336.generate.backend import Generation, Sample, SamplingParams, seed_of


def request_of(params: SamplingParams, number: int) -> dict[str, Any]:
    """What a prompt's request says, in process and over HTTP alike."""
    return {
        "n": params.n if params.temperature else 1,  # greedily vLLM refuses more, since all would be equal
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "max_tokens": params.max_tokens,
        "min_tokens": params.min_tokens,
        "stop": list(params.stop) or None,
        "include_stop_str_in_output": params.include_stop_str_in_output,
        # Without the number, equal prompts would get equal samples.
        "seed": seed_of(params.seed, number),
    }


def generation_of(prompt_ids: list[int], samples: list[Sample], params: SamplingParams) -> Generation:
    """A prompt with all samples that were wanted of it: greedily the one that was asked for, so many times."""
    return Generation(prompt_ids, samples if params.temperature else samples * params.n)


def finish_of(reason: str | None, stop_reason: int | str | None) -> str:
    """Our word for why a text ended.

    Raises:
        RuntimeError: it was not finished.
    """
    if reason == "length":
        return "length"
    if reason == "stop":  # by a string, by a token's id, or, with no reason, by the end-of-text token
        return "stop" if isinstance(stop_reason, str) else "end"
    raise RuntimeError(f"vLLM ended a text by {reason!r}; it was not finished")


def check_level(level: int) -> None:
    """Do nothing if a level of sleep is one.

    Raises:
        ValueError: it is another.
    """
    if level not in (1, 2):
        raise ValueError(f"level is 1 (weights to the host) or 2 (weights dropped), got {level}")
