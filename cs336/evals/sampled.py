"""Evaluations asked through a generation backend: sampled answers, of our engine or of vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cs336.generate.backend import Backend, SamplingParams
from cs336.progress import Progress, silent
from cs336.tokens.codec import crop_prompt, encode_prompts


@dataclass(frozen=True)
class SampledCompletion:
    """A completion as evaluations read it; its text keeps the stop string."""

    text: str
    finish: str
    prompt_truncated: bool


class SampledCompletions:
    """Answers prompts as `evaluate_reasoning` asks for them, one sample a prompt.

    Args:
        tokenizer: that of the backend's model.
        params: how tokens are drawn; the evaluation gives the longest output and the stop strings.
        context_length: of the model. A prompt that leaves no room for the longest output loses its beginning; None for
            a model that is not asked so much.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Any,
        params: SamplingParams,
        *,
        context_length: int | None = None,
        progress: Progress = silent,
    ) -> None:
        self._backend, self._tokenizer, self._params = backend, tokenizer, params
        self._context_length, self._progress = context_length, progress

    def __call__(self, prompts: Sequence[str], *, max_new_tokens: int, stop: Sequence[str]) -> list[SampledCompletion]:
        """As `cs336.evals.task.Generate`.

        Raises:
            ValueError: the longest output fills the context by itself.
        """
        room = None if self._context_length is None else self._context_length - max_new_tokens
        if room is not None and room < 1:
            raise ValueError(
                f"{max_new_tokens} new tokens leave no room for a prompt in a context of {self._context_length}"
            )
        encoded = list(encode_prompts(self._tokenizer, prompts))
        cut = [ids if room is None else crop_prompt(self._tokenizer, ids, room) for ids in encoded]
        params = replace(
            self._params, n=1, max_tokens=max_new_tokens, stop=tuple(stop), include_stop_str_in_output=True
        )
        generations = self._backend.generate(cut, params, progress=self._progress)
        return [
            SampledCompletion(generation.samples[0].text, generation.samples[0].finish, len(kept) < len(ids))
            for generation, kept, ids in zip(generations, cut, encoded, strict=True)
        ]
