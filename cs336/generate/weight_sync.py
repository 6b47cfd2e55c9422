"""Weights from a trainer to what generates, in place, and the check that both then give the same log-probabilities.

Between a trainer and a generator that were written apart, a wrong order of rows or a stale cache shows in nothing but
rewards that do not rise. The check costs a forward pass over a few texts.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cs336.generate.backend import Backend, Generation, Prompt, SamplingParams
from cs336.hardware import device_of
from cs336.model.huggingface import huggingface_weights
from cs336.model.logprobs import token_logprobs
from cs336.model.transformer import TransformerLM

_WRAPPERS = ("_orig_mod.", "module.")  # torch.compile's and DDP's


@dataclass(frozen=True)
class LogprobAgreement:
    """How far the generator's log-probabilities of its own tokens are from the trainer's, in nats.

    In fp32 on one device about 1e-5; with a generator in bf16 some hundredths for single tokens.
    """

    max_logprob_difference: float
    mean_logprob_difference: float
    num_checked_tokens: int

    def metrics(self) -> dict[str, float]:
        """For the line of a step."""
        return asdict(self)


def trainer_weights(trainer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A trainer's weights as `Backend.load_weights` takes them: of our model, or of one of transformers.

    Wrapped models (`torch.compile`, DDP) are looked into; sharded ones have to be gathered before.
    """
    trainer = _unwrapped(trainer)
    if isinstance(trainer, TransformerLM):
        yield from huggingface_weights(trainer)
        return
    for name, weight in trainer.named_parameters():
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        yield name, weight.detach()


def sync_weights(trainer: nn.Module, backend: Backend) -> float:
    """Give the generator the trainer's weights; returns the seconds that it took.

    Prompts that were read with the old weights are forgotten. An engine over the trainer's own model has nothing to
    copy.

    Raises:
        ValueError: the two are not of one shape.
    """
    start = time.perf_counter()
    if getattr(backend, "model", None) is _unwrapped(trainer):
        backend.reset_prefix_cache()
    else:
        backend.load_weights(trainer_weights(trainer))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def check_logprobs(
    trainer: nn.Module, backend: Backend, prompts: Sequence[Prompt], params: SamplingParams | None = None
) -> LogprobAgreement:
    """Let the generator continue some prompts, and compare what it says of its tokens with the trainer's forward pass.

    Args:
        params: 32 sampled tokens a prompt by default.

    Raises:
        ValueError: no prompts.
    """
    if not prompts:
        raise ValueError("no prompts to compare log-probabilities on; give at least one")
    params = params or SamplingParams(max_tokens=32)
    return compare_logprobs(trainer, backend.generate(prompts, replace(params, logprobs=True)))


@torch.no_grad()
def compare_logprobs(trainer: nn.Module, generations: Iterable[Generation]) -> LogprobAgreement:
    """The same for what has been generated with `logprobs`; one forward pass a sample.

    Raises:
        ValueError: a sample without log-probabilities, or no sample at all.
    """
    device = device_of(trainer)
    differences = []
    was_training = trainer.training
    trainer.eval()
    try:
        for generation in generations:
            for sample in generation.samples:
                if sample.logprobs is None:
                    raise ValueError("a sample has no log-probabilities; generate with logprobs=True")
                ids = torch.tensor([generation.prompt_ids + sample.token_ids], device=device)
                output = trainer(ids[:, :-1])
                logits = (output if isinstance(output, Tensor) else output.logits)[0, -len(sample.token_ids) :]
                theirs = token_logprobs(logits.float(), ids[0, -len(sample.token_ids) :]).cpu()
                differences.append((theirs - torch.tensor(sample.logprobs)).abs())
    finally:
        trainer.train(was_training)
    if not differences:
        raise ValueError("no samples to compare log-probabilities on")
    every = torch.cat(differences).double()
    return LogprobAgreement(float(every.max()), float(every.mean()), len(every))


@contextlib.contextmanager
def awake(backend: Backend, trainer: nn.Module | None = None, *, level: int = 1) -> Iterator[Backend]:
    """One device for both: the generator has its memory within the `with` alone.

    Args:
        trainer: its weights are given to the generator first.
        level: of its sleep; 2 needs no room on the host, and a trainer.

    Raises:
        ValueError: level 2 without a trainer: nobody would bring the weights back.
    """
    if level == 2 and trainer is None:
        raise ValueError("level 2 drops the weights; give the trainer that brings them back, or take level 1")
    if torch.cuda.is_available():
        # vLLM takes its memory beside PyTorch's, not from it: what the trainer has freed must be given back first.
        torch.cuda.empty_cache()
    backend.wake()
    try:
        if trainer is not None:
            sync_weights(trainer, backend)
        yield backend
    finally:
        backend.sleep(level)


def _unwrapped(trainer: Any) -> nn.Module:
    for name in ("module", "_orig_mod"):
        while isinstance(getattr(trainer, name, None), nn.Module):
            trainer = getattr(trainer, name)
    return trainer
