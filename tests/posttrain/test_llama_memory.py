"""What README says that tuning Llama 3.1 8B takes of a GPU, counted again."""

from pathlib import Path

import torch

from cs336.model.accounting import count_parameters
from cs336.model.transformer import ModelConfig
from cs336.presets import LLAMA
from cs336.profiling.full_step_memory import block_residual_bytes

# Source: Grattafiori et al. 2024, arXiv:2407.21783, table 3, and the checkpoint's config.json.
LLAMA_8B = ModelConfig(
    vocab_size=128_256, context_length=4_096, d_model=4_096, num_layers=32, num_heads=32, num_kv_heads=8, d_ff=14_336
)
LOGIT_BYTES = 13  # of each: in bf16, in fp32, and what the softmax's logarithm keeps
PAGE = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def gib(num_bytes: float) -> float:
    return num_bytes / 2**30


def activations(num_tokens: int, num_sequences: int) -> float:
    """At most, in GiB: a block's with as many key-value heads as heads, and the logits."""
    block = block_residual_bytes(LLAMA_8B, num_tokens=num_tokens, num_sequences=num_sequences, element_bytes=2)
    return gib(LLAMA_8B.num_layers * block + LOGIT_BYTES * num_tokens * LLAMA_8B.vocab_size)


def said(what: str) -> bool:
    start = PAGE.index("Preset `llama` needs no base model")
    return what in " ".join(PAGE[start : PAGE.index("```toml", start)].split())


def test_the_plan_is_what_the_parameters_take():
    parameters = count_parameters(LLAMA_8B)
    assert parameters.total == 8_030_261_248
    sft = LLAMA.instruction_sft
    assert (LLAMA.instructions.dtype, sft.optimizer, LLAMA.dpo.optimizer) == ("float32", "rmsprop", "rmsprop")
    whole = {width: gib(width * parameters.total) for width in (2, 4, 6, 8, 12, 16)}
    rows = activations(sft.micro_batch_size * sft.seq_length, sft.micro_batch_size)
    copies = gib(2 * (parameters.total - parameters.embeddings))
    assert said(f"gradients and moments are {whole[12]:.0f} GiB, and {whole[16]:.0f} GiB in the update")
    assert said(f"{rows:.0f} GiB of activations, is less") and whole[12] + copies + rows < whole[16] < 140
    assert said(f"DPO's reference, {whole[4]:.0f} GiB, a second GPU") and whole[16] + whole[4] > 140

    assert said(f"SFT in {whole[8]:.0f} GiB") and whole[6] + rows < whole[8]
    assert said(f"DPO in {whole[8] + whole[2]:.0f} GiB") and whole[8] + whole[2] < 79
    longest = activations(2 * 768, 2)
    assert said("`dpo = {max_tokens = 768}`") and whole[6] + whole[2] + longest < whole[8] + whole[2]


def test_rmsprop_takes_the_root_of_all_moments_at_once(monkeypatch):
    """On a GPU by default, here because it is told to: a fourth tensor as large as the weights."""
    weights = [torch.nn.Parameter(torch.ones(3, 5)), torch.nn.Parameter(torch.ones(7))]
    optimizer = torch.optim.RMSprop(weights, foreach=True)
    sizes, root = [], torch._foreach_sqrt
    monkeypatch.setattr(torch, "_foreach_sqrt", lambda some: sizes.append(sum(map(torch.numel, some))) or root(some))
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert sizes == [3 * 5 + 7]
