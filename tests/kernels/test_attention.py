"""Both attentions of tiles against plain attention in fp64: values, logsumexp, gradients; any shape they accept.

Without a GPU the Triton kernels run in Triton's interpreter, which is right in fp32 and fp16, not in bf16.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cs336.kernels.flash_attention import FlashAttention, flash_attention
from cs336.kernels.tiled_attention import TiledAttention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HANDOUT = {"rtol": 1e-2, "atol": 1e-2}
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]


@pytest.fixture(autouse=True, params=["chosen", "portable"] if DEVICE == "cuda" else ["portable"])
def kernels(request, monkeypatch):
    """On a GPU of Hopper's kind its own kernels, and those for any GPU."""
    if request.param == "portable":
        monkeypatch.setattr("cs336.kernels.flash_attention._takes_hopper_kernels", lambda q: False)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Output and logsumexp of the formula itself, all scores at once."""
    if q.ndim == 4:
        k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], 1) for each in (k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if causal:
        places = [torch.arange(each.shape[-2], device=q.device) for each in (q, k)]
        scores = scores.masked_fill(places[1] > places[0][:, None], float("-inf"))
    return scores.softmax(-1) @ v, torch.logsumexp(scores, -1)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype).requires_grad_()


def errors(attention, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> list[float]:
    """The largest errors of output and gradients against fp64, relative to values beyond 1."""
    output = attention(q, k, v, causal)
    grad = random(*output.shape, dtype=q.dtype, seed=9).detach()
    ours = [output.detach(), *torch.autograd.grad(output, (q, k, v), grad)]
    exact = [each.detach().double().requires_grad_() for each in (q, k, v)]
    expected, _ = plain_attention(*exact, causal)
    theirs = [expected.detach(), *torch.autograd.grad(expected, exact, grad.double())]
    assert [each.dtype for each in ours] == [q.dtype] * 4
    return [
        ((one.double() - other).abs() / other.abs().clamp(min=1)).max().item()
        for one, other in zip(ours, theirs, strict=True)
    ]


@pytest.mark.parametrize("attention", [TiledAttention.apply, FlashAttention.apply], ids=["tiled", "triton"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_the_handouts_shape(attention, dtype, causal):
    q, k, v = (random(4, 128, 64, dtype=dtype, seed=seed) for seed in range(3))
    assert max(errors(attention, q, k, v, causal)) < TOLERANCE[dtype]


@pytest.mark.parametrize("attention", [TiledAttention.apply, FlashAttention.apply], ids=["tiled", "triton"])
def test_the_one_saved_tensor_of_a_number_a_query_is_the_natural_logsumexp(attention):
    q, k, v = (random(2, 64, 32, seed=seed) for seed in range(3))
    output = attention(q, k, v, True)
    (logsumexp,) = (each for each in output.grad_fn.saved_tensors if each.shape == (2, 64))
    torch.testing.assert_close(logsumexp, plain_attention(q, k, v, True)[1], **HANDOUT)
    torch.testing.assert_close(logsumexp, plain_attention(q, k, v, True)[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES if DEVICE == "cuda" else DTYPES[:1], ids=str)
@pytest.mark.parametrize(
    ("num_queries", "num_keys", "d_head", "heads", "kv_heads"),
    [(130, 130, 16, 1, 1), (70, 150, 80, 2, 1), (150, 33, 48, 4, 2), (1, 200, 128, 2, 2), (129, 1, 32, 1, 1)],
)
@pytest.mark.parametrize("causal", [False, True])
def test_ragged_lengths_padded_heads_and_grouped_queries(dtype, num_queries, num_keys, d_head, heads, kv_heads, causal):
    q = random(2, heads, num_queries, d_head, dtype=dtype)
    k, v = (random(2, kv_heads, num_keys, d_head, dtype=dtype, seed=seed) for seed in (1, 2))
    assert (
        max(errors(lambda q, k, v, causal: flash_attention(q, k, v, causal=causal), q, k, v, causal))
        < (TOLERANCE[dtype])
    )


def test_heads_are_read_where_they_lie():
    q, k, v = (random(2, 96, 3, 32, seed=seed).transpose(1, 2) for seed in range(3))  # as a projection leaves them
    assert max(errors(lambda *a: flash_attention(*a[:3], causal=a[3]), q, k, v, True)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("case", ["features first", "off by one element", "one head for all"])
def test_what_the_copy_engine_cannot_address_is_copied(case):
    def made(seed: int) -> Tensor:
        if case == "features first":
            return random(2, 2, 32, 40, seed=seed).detach().mT.requires_grad_()
        if case == "off by one element":
            return random(2 * 2 * 40 * 32 + 1, seed=seed).detach()[1:].view(2, 2, 40, 32).requires_grad_()
        return random(2, 1, 40, 32, seed=seed).detach().expand(2, 2, 40, 32).requires_grad_()

    q, k, v = map(made, range(3))
    assert max(errors(lambda *a: flash_attention(*a[:3], causal=a[3]), q, k, v, True)) < TOLERANCE[torch.float32]


def test_the_operators_of_compiled_code():
    q, k, v = (random(2, 2, 40, 32, seed=seed) for seed in range(3))
    o, logsumexp = torch.ops.cs336.flash_forward(q, k, v, True)
    expected = flash_attention(q, k, v, causal=True)
    assert torch.equal(o, expected)
    grad = torch.ones_like(o)
    grads = torch.ops.cs336.flash_backward(q, k, v, o, grad, logsumexp, True)
    for one, other in zip(grads, torch.autograd.grad(expected, (q, k, v), grad), strict=True):
        assert torch.equal(one, other)
    torch.library.opcheck(torch.ops.cs336.flash_forward, (q.detach(), k.detach(), v.detach(), True))
    backward = tuple(each.detach() for each in (q, k, v, o, grad, logsumexp))
    torch.library.opcheck(torch.ops.cs336.flash_backward, (*backward, True))


@pytest.mark.parametrize("attention", [TiledAttention.apply, FlashAttention.apply], ids=["tiled", "triton"])
def test_large_scores_do_not_overflow(attention):
    q, k, v = (random(1, 80, 16, seed=seed) for seed in range(3))
    with torch.no_grad():
        output = attention(100 * q, 100 * k, v, True)
    exact, _ = plain_attention(100 * q.double(), 100 * k.double(), v.double(), True)
    torch.testing.assert_close(output.double(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("q", "k", "message"),
    [
        ((1, 2, 16, 24), (1, 2, 16, 24), "d_head 24 is not a multiple of 16"),
        ((1, 2, 16, 144), (1, 2, 16, 144), "d_head 144"),
        ((1, 3, 16, 16), (1, 2, 16, 16), "2 heads of keys do not divide 3"),
        ((1, 2, 16, 16), (2, 2, 16, 16), "batch and d_head"),
        ((1, 16, 16), (1, 2, 16, 16), "3 or 4 dimensions"),
        ((1, 0, 16), (1, 16, 16), "nothing to attend to"),
    ],
)
def test_what_the_kernel_does_not_take_is_an_error(q, k, message):
    with pytest.raises(ValueError, match=message):
        flash_attention(random(*q), random(*k), random(*k), causal=True)
    with pytest.raises(ValueError, match="one of bf16, fp16, fp32"):
        flash_attention(*(random(1, 16, 16, dtype=torch.float64) for _ in range(3)), causal=True)
