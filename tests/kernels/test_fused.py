"""The fused kernels against their plain twins: values, gradients, ragged sizes; in the interpreter or on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cs336.kernels.adamw import adamw_step
from cs336.kernels.cross_entropy import cross_entropy_in_place
from cs336.kernels.decode_attention import decode_attention
from cs336.kernels.rms_norm import rms_norm
from cs336.kernels.rope import rotate
from cs336.kernels.swiglu import swiglu
from cs336.kernels.weighted_sum import weighted_sum
from cs336.model.attention import scaled_dot_product_attention
from cs336.model.layers import RMSNorm, RotaryPositionalEmbedding, silu
from cs336.train.optimizer import AdamW

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype).requires_grad_()


def agree(ours, plain, inputs: list[Tensor], dtype: torch.dtype) -> None:
    """Output and gradients agree with the plain twin in fp32, to the dtype's precision."""
    grad = random(*ours(*inputs).shape, dtype=dtype, seed=9).detach()
    wide = [each.detach().float().requires_grad_() for each in inputs]
    expected = plain(*wide)
    theirs = [expected, *torch.autograd.grad(expected, wide, grad.float())]
    output = ours(*inputs)
    for one, other in zip([output, *torch.autograd.grad(output, inputs, grad)], theirs, strict=True):
        scale = other.abs().max().clamp(min=1).item()
        torch.testing.assert_close(one.float(), other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 8), (3, 5, 48), (7, 513)])
def test_rms_norm(shape, dtype):
    def plain(x: Tensor, weight: Tensor) -> Tensor:
        layer = RMSNorm(shape[-1], eps=1e-3, device=DEVICE)
        return torch.func.functional_call(layer, {"weight": weight}, (x,))

    weight = random(shape[-1], dtype=torch.float32, seed=1)
    agree(lambda x, w: rms_norm(x, w, eps=1e-3), plain, [random(*shape, dtype=dtype), weight], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7, 200), (40, 128)])
def test_weighted_sum(shape, dtype):
    inputs = [random(*shape, dtype=dtype), random(shape[-1], dtype=dtype, seed=1)]
    agree(weighted_sum, lambda x, weight: (weight * x).sum(-1), inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5,), (3, 7, 33), (2, 2_048)])
def test_swiglu(shape, dtype):
    inputs = [random(*shape, dtype=dtype, seed=seed) for seed in range(2)]
    agree(swiglu, lambda gate, up: silu(gate) * up, inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["interleaved", "half"])
@pytest.mark.parametrize(("heads", "seq", "d"), [(1, 1, 2), (3, 37, 16), (2, 70, 24)])
@pytest.mark.parametrize("projected", [True, False])
def test_rope(heads, seq, d, layout, dtype, projected):
    rope = RotaryPositionalEmbedding(100.0, d, seq, layout=layout, device=DEVICE)
    x = random(2, seq, heads, d, dtype=dtype) if projected else random(2, heads, seq, d, dtype=dtype)

    def arranged(x: Tensor) -> Tensor:
        return x.transpose(1, 2) if projected else x

    def ours(x: Tensor) -> Tensor:
        y = rotate(arranged(x), rope.cos, rope.sin, interleaved=layout == "interleaved")
        assert y.stride() == torch.empty_like(arranged(x)).stride()
        return y

    agree(ours, lambda x: rope(arranged(x), torch.arange(seq, device=DEVICE)), [x], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [1, 50, 20_000])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_cross_entropy(vocab, dtype, z_loss):
    logits = random(6, vocab, dtype=dtype).detach() * 4
    targets = torch.randint(vocab, (6,), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    wide = logits.float().requires_grad_()
    nats = torch.nn.functional.cross_entropy(wide, targets, reduction="none")
    log_normalizers = torch.logsumexp(wide, -1)
    (nats + z_loss * log_normalizers.square()).sum().mul(0.5).backward()
    ours, ours_normalizers = cross_entropy_in_place(logits, targets, scale=0.5, z_loss=z_loss)
    torch.testing.assert_close(ours, nats.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours_normalizers, log_normalizers.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits.float(), wide.grad, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_large_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]], device=DEVICE)
    nats, _ = cross_entropy_in_place(logits, torch.tensor([1], device=DEVICE), scale=1.0)
    assert nats.tolist() == [2e4]
    assert logits.tolist() == [[1.0, -1.0, 0.0]]


def test_adamw_equals_the_plain_one_over_some_steps():
    shapes = [(5, 7), (), (40_000,), (1, 1_024)]
    plain = [torch.nn.Parameter(random(*shape, seed=seed).detach()) for seed, shape in enumerate(shapes)]
    ours = [each.detach().clone() for each in plain]
    m, v = ([torch.zeros_like(each) for each in ours] for _ in range(2))
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    optimizer = AdamW(plain, **settings)
    for t in range(1, 4):
        for seed, each in enumerate(plain):
            each.grad = random(*each.shape, seed=10 * t + seed).detach()
        adamw_step(ours, [each.grad for each in plain], m, v, t=t, **settings)
        optimizer.step()
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-6, atol=1e-7)


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="does not fit rows of 8"):
        rms_norm(random(2, 8), random(4))
    with pytest.raises(ValueError, match="does not fit rows of 8"):
        weighted_sum(random(2, 8), random(4))
    with pytest.raises(ValueError, match="longer than 16384"):
        rms_norm(random(1, 16_385), random(16_385))
    with pytest.raises(ValueError, match="differ"):
        swiglu(random(2, 8), random(2, 4))
    with pytest.raises(ValueError, match="do not fit"):
        rotate(random(1, 1, 4, 8), random(3, 4), random(3, 4), interleaved=True)
    with pytest.raises(ValueError, match="contiguous logits"):
        cross_entropy_in_place(random(4, 6).detach().T, torch.zeros(6, dtype=torch.long), scale=1.0)
    with pytest.raises(ValueError, match="one dtype"):
        adamw_step(
            [random(2).detach()],
            [random(2).detach().half()],
            *([random(2).detach()] for _ in range(2)),
            t=1,
            lr=0.1,
            betas=(0.9, 0.9),
            eps=1e-8,
            weight_decay=0.0,
        )
    with pytest.raises(ValueError, match="not contiguous, or differs"):
        adamw_step(
            [random(2, 3).detach().T],
            [random(3, 2).detach()],
            *([random(3, 2).detach()] for _ in range(2)),
            t=1,
            lr=0.1,
            betas=(0.9, 0.9),
            eps=1e-8,
            weight_decay=0.0,
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "d"), [(2, 2, 16), (6, 1, 32), (12, 2, 128), (40, 2, 64)])
def test_decode_attention(heads, kv_heads, d, dtype):
    """Each sequence to its own length and the new token; what lies beyond, be it NaN, is never read or overwritten."""
    lengths = torch.tensor([0, 1, 64, 65, 130, 149], device=DEVICE)
    queries, *new = (random(6, count, d, dtype=dtype, seed=count).detach() for count in (heads, kv_heads, kv_heads))
    keys, values = (random(6, kv_heads, 150, d, dtype=dtype, seed=seed).detach() for seed in (1, 2))
    for row, length in enumerate(lengths):
        keys[row, :, length:] = values[row, :, length:] = float("nan")
    before = keys.clone(), values.clone()
    attended = decode_attention(queries, *new, keys, values, lengths)
    for row, length in enumerate(lengths):
        for cache, was, put in zip((keys, values), before, new, strict=True):
            was[row, :, length] = put[row]
            assert torch.equal(cache[row].nan_to_num(7.0), was[row].nan_to_num(7.0))
        of_heads = [each[row, :, : length + 1].float() for each in (keys, values)]
        of_heads = [each.repeat_interleave(heads // kv_heads, 0) for each in of_heads]
        expected = scaled_dot_product_attention(queries[row, :, None].float(), *of_heads)[:, 0]
        torch.testing.assert_close(attended[row].float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_decode_attention_refuses_what_it_would_read_wrongly():
    queries, new, cache = random(2, 4, 16), random(2, 2, 16), random(2, 2, 8, 16)
    lengths = torch.ones(2, dtype=torch.int64, device=DEVICE)
    for bad in (
        (queries, new, new, cache[:1], cache[:1]),
        (queries[:, :3], new, new, cache, cache),
        (queries, new[:, :1], new, cache, cache),
        (queries, new, new[:1], cache, cache),
        (queries[..., :12], new[..., :12], new[..., :12], cache[..., :12], cache[..., :12]),
        (queries, new, new, cache.transpose(2, 3).contiguous().transpose(2, 3), cache),
    ):
        with pytest.raises(ValueError):
            decode_attention(*bad, lengths)


@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_rope_of_one_token_of_each_sequence(layout):
    rope = RotaryPositionalEmbedding(100.0, 16, 50, layout=layout, device=DEVICE)
    x, positions = random(5, 3, 1, 16).detach(), torch.tensor([3, 0, 49, 7, 7], device=DEVICE)[:, None, None]
    expected = rope(x, positions)
    rope.fused = True
    torch.testing.assert_close(rope(x, positions), expected)
