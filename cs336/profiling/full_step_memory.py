"""What a rank holds in a sharded training step with recomputation, in closed form, and where the peak is."""

from __future__ import annotations

from math import ceil

from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.parallel.accounting import unit_elements, weights_of

_FP32 = 4
_STATES = 2  # AdamW's moments
_LOGIT_COPIES = 13  # bytes of each logit of a chunk: fp32 values, a mask as bool and in fp32, and their difference
_UNITS_AT_ONCE = 2  # whole weights: in use and gathered ahead; whole gradients: being made and on their way


def block_residual_bytes(config: ModelConfig, *, num_tokens: int, num_sequences: int, element_bytes: int) -> int:
    """What a block of ours keeps for its backward pass, parameters left out.

    Per token, with elements of b bytes: each norm its input and the normalized rows in fp32, a scale, and its output,
    2 (8d + 4 + bd); attention its queries, keys, values and output, 4bd, and a log-sum-exp in fp32 for each head, 4h;
    the feed-forward five tensors as wide as its inside, 5b·d_ff. The rotation keeps a cosine and a sine for queries and
    for keys at each position, 8 d_head.

    Holds for eager SwiGLU blocks with fused attention and as many key-value heads as heads, without dropout and biases.
    """
    d, d_ff, b = config.d_model, config.hidden_width, element_bytes
    norms = 2 * (8 * d + 4 + b * d)
    attention = 4 * b * d + 4 * config.num_heads
    feed_forward = 5 * b * d_ff
    positions = num_tokens // num_sequences
    return (norms + attention + feed_forward) * num_tokens + 8 * config.features_per_head * positions


def memory_plan(
    config: ModelConfig,
    *,
    world_size: int,
    num_tokens: int,
    num_sequences: int,
    element_bytes: int,
    slice_bytes: int,
    layers_per_segment: int,
    chunk_tokens: int,
    keep_attention: bool = False,
    fused_update: bool = False,
) -> dict[str, int]:
    """Bytes of the fullest rank, by what they are for, and the peak.

    Args:
        num_tokens, num_sequences: of one rank.
        element_bytes: of all that is computed and sent: 2 for bf16.
        slice_bytes: of the slices of weights, gradients and states: as many, or 4 for fp32 masters.
        layers_per_segment: of the recomputation; 0 keeps all.
        chunk_tokens: whose logits are held at once.
        keep_attention: its outputs are kept beside what enters the segments.
        fused_update: by our kernel, which has no temporary.

    Returns:
        `parameters`, `gradients`, `states`; `checkpoints`, what enters the segments, and attention; `residuals` of the
        layers kept at once; `head` and `backward`, what those need besides; `update`, the temporary of AdamW; and
        `peak`, the most of four moments: in the loss (no gradients yet), at the first segment of the backward pass, at
        its last (all gradients, no checkpoints), and in the update.

    Gradients travel by units in the narrow dtype, and only their mean is held in the masters': no gradient is there
    twice. So fp32 masters of the contest's 8.126 B weights add over two ranks 24.4 GB to the 24.4 GB of bf16 weights
    and moments, 8.1 GB to its gradients, and the peak, with attention kept, is 81.5 GB in place of 57.2 GB.
    """
    weights = weights_of(TransformerLM(config, device="meta"))
    b, d, vocab = element_bytes, config.d_model, config.vocab_size
    held = slice_bytes * sum(w.padded_elements(world_size) // (world_size if w.gathered_for else 1) for w in weights)
    units = unit_elements(weights, world_size)
    block_weights = max((units[w.unit] for w in weights if "block" in w.gathered_for), default=0)
    segments = ceil(config.num_layers / layers_per_segment) if layers_per_segment else 0
    kept = layers_per_segment or config.num_layers
    block = block_residual_bytes(
        config, num_tokens=num_tokens, num_sequences=num_sequences, element_bytes=element_bytes
    )
    attention = 0
    if keep_attention and segments:
        attention = config.num_layers * (b * d + _FP32 * config.num_heads) * num_tokens
    chunk = min(chunk_tokens, num_tokens)
    final_norm = (8 * d + 4 + b * d) * num_tokens
    head_gradients = (_FP32 + b) * vocab * d + b * d * num_tokens
    plan = {
        "parameters": held,
        "gradients": held,
        "states": _STATES * held,
        "checkpoints": segments * b * d * num_tokens + attention,
        "residuals": kept * block,
        "head": final_norm + b * vocab * d + head_gradients + _LOGIT_COPIES * chunk * vocab,
        "backward": 4 * b * config.hidden_width * num_tokens + 2 * b * _UNITS_AT_ONCE * block_weights,
        "update": 0 if fused_update else held,
    }
    resting = plan["parameters"] + plan["states"]
    in_loss = resting + plan["checkpoints"] + plan["head"] + (0 if layers_per_segment else plan["residuals"])
    # The head's gradient is summed over the ranks while the last segment runs.
    in_backward = resting + plan["checkpoints"] + plan["residuals"] + plan["backward"] + 2 * b * vocab * d
    at_its_end = resting + plan["gradients"] + (layers_per_segment or 1) * block + plan["backward"]
    in_update = resting + plan["gradients"] + plan["update"]
    return plan | {"peak": max(in_loss, in_backward, at_its_end, in_update)}
