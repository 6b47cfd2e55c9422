"""Checkpoints against transformers: the same logits from the same files, in both directions."""

import json
import os
from dataclasses import replace

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from cs336.files import UserError  # noqa: E402
from cs336.generate.engine import generate  # noqa: E402
from cs336.model import huggingface  # noqa: E402
from cs336.model.huggingface import config_from_huggingface, load_huggingface, save_huggingface  # noqa: E402
from cs336.model.transformer import ModelConfig, TransformerLM, load_model  # noqa: E402

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
THEIRS = {
    "llama": ("Llama", {}),
    "llama with all biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied, without groups": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama 3.1's rotation": ("Llama", {"rope_parameters": LLAMA3_ROPE, "head_dim": 16}),
    "qwen2": ("Qwen2", {"rms_norm_eps": 1e-5}),
    "qwen2, which takes no notice of attention_bias": ("Qwen2", {"attention_bias": True}),
    "qwen2, tied, one key-value head": ("Qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3, tied": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
}
OURS = ModelConfig(context_length=24, d_model=32, num_layers=2, num_heads=4, vocab_size=61)
EXPORTABLE = {
    "the handout's": OURS,
    "tied": replace(OURS, tied=True),
    "grouped, wide heads": replace(OURS, num_kv_heads=2, head_dim=12),
    "half layout": replace(OURS, rope_layout="half"),
    "all biases": replace(OURS, qkv_bias=True, output_bias=True, ffn_bias=True),
    "Llama 3.1's rotation": replace(OURS, rope_theta=100.0, rope_factor=8.0, rope_original_context=16),
    "Qwen2's biases": replace(OURS, qkv_bias=True, num_kv_heads=2),
    "Qwen3's norms": replace(OURS, qk_norm=True, head_dim=16, num_kv_heads=1, norm_eps=1e-6),
}


def randomized(model):
    """Every weight away from its start, so that an ignored or swapped one shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 and parameter.mean() == 1 else 0.2 * noise)
    return model.eval()


def their_model(family, **changes):
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **changes})
    return randomized(getattr(transformers, f"{family}ForCausalLM")(config))


def assert_same_logits(ours, theirs, atol=1e-4):
    ids = torch.randint(0, 61, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours(ids), expected, atol=atol, rtol=1e-4)
        assert expected.std() > 0.05  # flat logits would agree by themselves
        torch.testing.assert_close(ours(ids[:, :7]), theirs(ids[:, :7]).logits, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("case", THEIRS)
def test_a_checkpoint_of_theirs_gives_the_same_logits_here(case, tmp_path):
    family, changes = THEIRS[case]
    theirs = their_model(family, **changes)
    theirs.save_pretrained(tmp_path)
    assert_same_logits(load_huggingface(tmp_path), theirs)


@pytest.mark.parametrize("case", THEIRS)
def test_what_was_read_is_written_back_to_the_same_logits(case, tmp_path):
    family, changes = THEIRS[case]
    theirs = their_model(family, **changes)
    theirs.save_pretrained(tmp_path / "theirs")
    save_huggingface(load_huggingface(tmp_path / "theirs"), tmp_path / "back")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert type(back) is type(theirs)
    for name, weight in theirs.state_dict().items():
        assert torch.equal(weight, back.state_dict()[name]), name
    assert_same_logits(load_huggingface(tmp_path / "back"), back)


@pytest.mark.parametrize("case", EXPORTABLE)
def test_our_models_open_in_transformers_as_they_are(case, tmp_path):
    ours = randomized(TransformerLM(EXPORTABLE[case]))
    save_huggingface(ours, tmp_path / "out")
    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    assert_same_logits(ours, theirs)
    assert_same_logits(load_huggingface(tmp_path / "out"), theirs)


class Letters:
    """A tokenizer of letters that can write itself."""

    end_of_text_id = 0

    def encode(self, text):
        return [ord(character) - 96 for character in text]

    def decode(self, ids):
        return "".join(chr(96 + i) for i in ids)

    def save(self, folder):
        (folder / "tokenizer.json").write_text("{}")


def test_their_greedy_continuation_is_ours_and_ends_at_the_same_token(tmp_path):
    ours = randomized(TransformerLM(replace(OURS, num_kv_heads=2)))
    save_huggingface(ours, tmp_path / "out", tokenizer=Letters())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.generation_config.eos_token_id == 0 and (tmp_path / "out" / "tokenizer.json").exists()
    written = theirs.generate(torch.tensor([[8, 5, 12]]), max_new_tokens=16, do_sample=False, pad_token_id=0)
    expected = Letters().decode(i for i in written[0, 3:].tolist() if i)
    assert generate(ours, Letters(), ["hel"], max_new_tokens=16)[0].text == expected


def test_shards_and_bf16_survive_both_ways(tmp_path):
    ours = randomized(TransformerLM(replace(OURS, num_kv_heads=2)))
    save_huggingface(ours, tmp_path / "out", dtype=torch.bfloat16, max_shard_bytes=8_000)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    again = load_huggingface(tmp_path / "out")
    assert theirs.dtype == again.lm_head.weight.dtype == torch.bfloat16
    assert again.layers[0].attn.rope.cos.dtype == torch.float32
    assert_same_logits(load_huggingface(tmp_path / "out", dtype=torch.float32), theirs.float())
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    assert (tmp_path / "sharded" / huggingface.INDEX_FILE).exists()
    assert_same_logits(load_huggingface(tmp_path / "sharded"), theirs)


def test_a_smaller_context_can_be_asked_for(tmp_path):
    theirs = their_model("Llama")
    theirs.save_pretrained(tmp_path)
    ours = load_huggingface(tmp_path, context_length=24)
    assert ours.config.context_length == 24
    assert_same_logits(ours, theirs)
    with pytest.raises(UserError, match="its context is 40 tokens, not 41"):
        load_huggingface(tmp_path, context_length=41)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "post"}, "no norm='post'"),
        ({"norm": "none"}, "no norm='none'"),
        ({"norm_kind": "layer"}, "no norm_kind='layer'"),
        ({"positions": "none"}, "no positions='none'"),
        ({"feed_forward": "gelu", "positions": "learned"}, "no positions='learned', no feed_forward='gelu'"),
        ({"output_bias": True}, "no output_bias without qkv_bias"),
        ({"qkv_bias": True, "qk_norm": True}, "no qk_norm with qkv_bias alone"),
        ({"qkv_bias": True, "head_dim": 12}, "no head_dim with qkv_bias alone"),
        ({"qk_norm": True, "ffn_bias": True}, "no ffn_bias with qk_norm"),
    ],
)
def test_models_that_no_architecture_has_are_refused_in_one_line(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        save_huggingface(TransformerLM(replace(OURS, **changes)), tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "model_type 'mistral' is not read; llama, qwen2, qwen3 are"),
        ({"hidden_act": "gelu"}, "uses hidden_act='gelu'"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type='yarn'"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial rotation"),
        ({"num_key_value_heads": 3}, "num_kv_heads must divide"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
    ],
)
def test_checkpoints_that_use_more_are_refused_in_one_line(changes, message, tmp_path):
    values = {**SHAPE, "model_type": "qwen2", **changes}
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    with pytest.raises(UserError, match=message) as caught:
        load_huggingface(tmp_path)
    assert str(tmp_path) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_llama_3_1s_own_config_file_is_understood():
    values = {  # as published, before transformers 5
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4_096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "pretraining_tp": 1,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "bfloat16",
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8_192,
            "rope_type": "llama3",
        },
    }
    config = config_from_huggingface(values)
    assert (config.kv_heads, config.features_per_head, config.rope_theta) == (8, 128, 500_000.0)
    assert (config.rope_factor, config.rope_original_context, config.qkv_bias) == (8.0, 8_192, False)


def test_damaged_checkpoints_are_named(tmp_path):
    their_model("Llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lacking = {name: value for name, value in weights.items() if "layers.1.mlp.up" not in name}
    save_file(lacking, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        load_huggingface(tmp_path)
    save_file({**weights, "model.norm.weight": torch.zeros(31)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.norm\.weight has shape \(31,\), its config says \(32,\)"):
        load_huggingface(tmp_path)
    save_file({**weights, "model.layers.2.mlp.up_proj.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"holds model\.layers\.2"):
        load_huggingface(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_huggingface(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="not found"):
        load_huggingface(tmp_path)
    with pytest.raises(UserError, match="a Hugging Face checkpoint"):
        load_model(tmp_path)


def test_an_export_is_whole_or_not_there(tmp_path, monkeypatch):
    model = TransformerLM(OURS)
    written = []

    def fails_at_the_second(tensors, path, **options):
        if written:
            raise RuntimeError("power is gone")
        written.append(path)
        save_file(tensors, path, **options)

    monkeypatch.setattr(huggingface, "save_file", fails_at_the_second)
    with pytest.raises(RuntimeError, match="power"):
        save_huggingface(model, tmp_path / "out", max_shard_bytes=8_000)
    assert list(tmp_path.iterdir()) == []


def test_an_export_replaces_nothing(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        save_huggingface(TransformerLM(OURS), tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]
    (tmp_path / "out" / "mine.txt").unlink()
    save_huggingface(TransformerLM(OURS), tmp_path / "out")  # an empty folder is fine
    assert (tmp_path / "out" / "config.json").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(small_disk):
    disk = small_disk("64k")
    with pytest.raises(UserError, match="the disk is full"):
        save_huggingface(TransformerLM(OURS), disk / "out")
    assert list(disk.iterdir()) == []
