"""The kernel that draws tokens against its plain twin: the same tokens and the same state, slot by slot."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest
import torch

from cs336.generate.sampling import Sampling, sample
from cs336.kernels.next_token import take_next_token
from cs336.model.logprobs import token_logprobs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, *([torch.bfloat16] if DEVICE == "cuda" else [torch.float16])]
SLOTS, MAX_NEW = 9, 5


@dataclass
class State:
    uniforms: torch.Tensor
    is_end: torch.Tensor
    limits: torch.Tensor
    tokens: torch.Tensor
    logprobs: torch.Tensor
    newest: torch.Tensor
    made: torch.Tensor
    ended: torch.Tensor
    unsound: torch.Tensor

    def as_arguments(self) -> dict[str, torch.Tensor]:
        return {each.name: getattr(self, each.name) for each in fields(self)}


def state_of(vocab: int) -> State:
    """Nine slots: some have ended, some stand at their limit, and the tokens that end are every fifth."""
    generator = torch.Generator().manual_seed(vocab)
    made = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3])
    state = State(
        uniforms=torch.rand(SLOTS, MAX_NEW, generator=generator, dtype=torch.float64),
        is_end=torch.arange(vocab) % 5 == 0,
        limits=torch.tensor([5, 2, 5, 4, 5, 1, 5, 5, 5]),
        tokens=torch.full((SLOTS, MAX_NEW), -1),
        logprobs=torch.zeros(SLOTS, MAX_NEW),
        newest=torch.full((SLOTS,), -1),
        made=made,
        ended=torch.tensor([False, False, True, False, False, False, True, False, False]),
        unsound=torch.zeros((), dtype=torch.bool),
    )
    return State(*(each.to(DEVICE) for each in state.as_arguments().values()))


def plainly(logits: torch.Tensor, slots: torch.Tensor, sampling: Sampling, min_tokens: int, state: State) -> None:
    """What the kernel does, a row after the other."""
    for row, slot in enumerate(slots.tolist()):
        if state.ended[slot]:
            continue
        made = int(state.made[slot])
        wide = logits[row].float()
        allowed = wide.masked_fill(state.is_end, float("-inf")) if made < min_tokens else wide
        chosen = sample(allowed[None], state.uniforms[slot, made : made + 1], sampling)[0]
        state.tokens[slot, made] = state.newest[slot] = chosen
        state.logprobs[slot, made] = token_logprobs(wide, chosen)
        state.made[slot] = made + 1
        state.ended[slot] = bool(state.is_end[chosen]) or made + 1 >= int(state.limits[slot])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("vocab", "min_tokens"), [(7, 0), (300, 3), (5_000, 0), (8_200, 9)])
def test_tokens_and_state(vocab, min_tokens, temperature, dtype):
    generator = torch.Generator().manual_seed(1)
    slots = torch.tensor([8, 0, 1, 2, 3, 5, 6, 7], device=DEVICE)  # 4 has none
    logits = (3 * torch.randn(len(slots), vocab, generator=generator)).to(DEVICE, dtype)
    ours, plain = state_of(vocab), state_of(vocab)
    settings = {"temperature": temperature, "min_tokens": min_tokens}
    take_next_token(logits, slots, with_logprobs=True, **settings, **ours.as_arguments())
    plainly(logits, slots, Sampling(temperature=temperature), min_tokens, plain)
    torch.testing.assert_close(ours.as_arguments(), plain.as_arguments(), rtol=1e-5, atol=1e-5)
    without = state_of(vocab)
    take_next_token(logits, slots, with_logprobs=False, **settings, **without.as_arguments())
    assert torch.equal(without.tokens, ours.tokens) and not without.logprobs.any()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("place", "value", "is_unsound"),
    [(0, float("nan"), True), (1, float("inf"), True), (slice(None), float("-inf"), True), (2, float("-inf"), False)],
)
def test_damaged_logits_are_told(place, value, is_unsound, temperature):
    logits = torch.zeros(2, 40, device=DEVICE)
    logits[1, place] = value
    for slots, told in (([0, 1], is_unsound), ([0, 2], False)):  # slot 2 has ended, so nobody looks
        state = state_of(40)
        slots_of_rows = torch.tensor(slots, device=DEVICE)
        settings = {"temperature": temperature, "min_tokens": 0, "with_logprobs": True}
        take_next_token(logits, slots_of_rows, **settings, **state.as_arguments())
        assert bool(state.unsound) == told
        assert 0 <= int(state.newest[0]) < 40


def test_no_token_that_may_not_come_is_drawn():
    """Numbers at both ends of the line, and probabilities of 0 there."""
    logits = torch.full((2, 50), float("-inf"), device=DEVICE)
    logits[:, 20:30] = 0.0
    state = state_of(50)
    state.uniforms[0], state.uniforms[1] = 0.0, 1 - 2**-53
    settings = {"temperature": 1.0, "min_tokens": 9, "with_logprobs": False}
    take_next_token(logits, torch.tensor([0, 1], device=DEVICE), **settings, **state.as_arguments())
    assert state.newest[:2].tolist() == [21, 29]  # 20 and 25 end a text


def test_it_refuses_what_it_would_read_wrongly():
    state, logits = state_of(40), torch.zeros(2, 40, device=DEVICE)
    slots = torch.tensor([0, 1], device=DEVICE)
    settings = {"temperature": 1.0, "min_tokens": 0, "with_logprobs": False}
    for bad, of_slots, changed in (
        (logits[:1], slots, {}),
        (logits[:, :30], slots, {}),
        (torch.zeros(40, 2, device=DEVICE).T, slots, {}),
        (logits, slots, {"uniforms": state.uniforms[:, :3]}),
        (logits, slots, {"tokens": state.tokens.T.contiguous().T}),
    ):
        with pytest.raises(ValueError, match=r"contiguous|fit"):
            take_next_token(bad, of_slots, **settings, **(state.as_arguments() | changed))
    assert state.made.equal(state_of(40).made)
