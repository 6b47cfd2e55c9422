"""One interface to whatever continues prompts: our own engine, vLLM in this process, or a server of vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

from cs336.generate.sampling import Sampling
from cs336.progress import Progress, silent
from cs336.tokens.codec import bos_ids, encode_prompts, is_huggingface

if TYPE_CHECKING:
    from cs336.generate.engine import TextCodec

Prompt = str | Sequence[int]  # a text, or its ids


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How prompts are continued, by the names that vLLM uses.

    Attributes:
        n: samples of each prompt.
        temperature: divides the logits; 0 is greedy. The default, as all of the handout's sampling, is 1.
        top_p, top_k: as in `Sampling`; 1 and 0 allow all tokens.
        max_tokens: the most tokens generated. A text ends where the context does, too.
        min_tokens: so many tokens come before an end-of-text token may; a stop string counts only if a token
            after these completes it.
        stop: strings that end a text.
        include_stop_str_in_output: the text keeps the stop string.
        seed: 0 or more. With the prompt's number and the sample's it fixes the random numbers, whatever else is
            in the batch.
        logprobs: return the log-probability of each token.

    Raises:
        ValueError: a setting outside its range.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 1_024
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    seed: int = 0
    logprobs: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            raise ValueError(f'stop is a tuple of strings, got {self.stop!r}; write ("...",)')
        object.__setattr__(self, "stop", tuple(self.stop))
        if "" in self.stop:
            raise ValueError("a stop string is empty, which would end every text at once; leave it out")
        if self.n < 1 or self.max_tokens < 1:
            raise ValueError(f"n and max_tokens are 1 or more, got {self.n} and {self.max_tokens}")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise ValueError(f"min_tokens lies in 0 to max_tokens={self.max_tokens}, got {self.min_tokens}")
        if self.seed < 0:
            raise ValueError(f"a seed is 0 or more, got {self.seed}")
        self.sampling  # noqa: B018 - checks the rest

    @property
    def sampling(self) -> Sampling:
        """How one token is drawn."""
        return Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


@dataclass(frozen=True)
class Sample:
    """One continuation of a prompt.

    Attributes:
        text: without prompt and end-of-text token; the stop string as the parameters say.
        token_ids: all that were generated, the end-of-text token and those of the stop string among them.
        logprobs: of each of these tokens, in nats, under the model's own distribution: at temperature 1, and nothing
            cut off by top-k, top-p or `min_tokens`. None unless asked for.
        finish: "stop" (a stop string), "end" (an end-of-text token) or "length" (`max_tokens`, or the context).
    """

    text: str
    token_ids: list[int]
    logprobs: list[float] | None
    finish: str


@dataclass(frozen=True)
class Generation:
    """A prompt's ids, as the model saw them, and its samples in order."""

    prompt_ids: list[int]
    samples: list[Sample]


class Backend(Protocol):
    """What generates: `cs336.generate.continuous.Engine`, or vLLM, `VllmEngine` and `VllmServer`."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        numbers: Sequence[int] | None = None,
        progress: Progress = silent,
    ) -> list[Generation]:
        """Continue each prompt `params.n` times; in the order of the prompts.

        Args:
            numbers: whose random numbers each prompt gets; its place among the prompts by default. A prompt gets
                the same samples alone as among others if its number is the same.

        Raises:
            ValueError: a prompt that leaves no room in the context, or as many numbers as there are no prompts.
        """

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights, in place, and forget what was computed with the old ones.

        Args:
            weights: by the names, and in the order of rows, of a Hugging Face checkpoint
                (`cs336.model.huggingface.huggingface_weights`).

        Raises:
            ValueError: a name that the model has not, one that is missing, or a shape that differs.
        """

    def reset_prefix_cache(self) -> None:
        """Forget the keys and values of prompts read before."""

    def sleep(self, level: int = 1) -> None:
        """Give the device's memory back: the cache always; weights to the host (1) or, to be loaded anew, nowhere (2).

        Raises:
            ValueError: another level.
        """

    def wake(self) -> None:
        """Take the memory again; after level 2, `load_weights` must follow before anything is generated."""


class HuggingFaceCodec:
    """A tokenizer of transformers in our engine: prompts get what it puts before texts, such as Llama's first token.

    Attributes:
        bos_ids: what that is.

    Raises:
        ValueError: it has no token that ends a text.
    """

    def __init__(self, tokenizer: Any):
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-text token; set its eos_token")
        self._tokenizer = tokenizer
        self.bos_ids = bos_ids(tokenizer)

    @property
    def end_of_text_id(self) -> int:
        """The id that ends a text."""
        return self._tokenizer.eos_token_id

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt; see `encode_prompts`."""
        return next(encode_prompts(self._tokenizer, [text]))

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of what follows a prompt, without the special tokens of a beginning."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)


def codec_of(tokenizer: Any) -> TextCodec:
    """A tokenizer, ours or one of transformers, as generation needs it."""
    return HuggingFaceCodec(tokenizer) if is_huggingface(tokenizer) else tokenizer


def numbers_of(prompts: Sequence[Prompt], numbers: Sequence[int] | None) -> Sequence[int]:
    """Whose random numbers each prompt gets.

    Raises:
        ValueError: as many numbers as there are no prompts.
    """
    if numbers is None:
        return range(len(prompts))
    if len(numbers) != len(prompts):
        raise ValueError(f"{len(numbers)} numbers for {len(prompts)} prompts; give one for each")
    return numbers


def seed_of(seed: int, number: int) -> int:
    """A seed of 32 bits for one prompt, where a backend takes one a prompt; those of its samples count on from it."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
