"""Hugging Face checkpoints in and out: Llama, Qwen2 (with Qwen2.5) and dense Qwen3.

Their rotary positions turn the features (k, k + head_dim/2) of a head, ours by default (2k, 2k+1).
A model read from a checkpoint keeps its rows and says so in `rope_layout`; a model of ours is
exported with the rows of its query and key projections put in the other order. The scores, which
are sums over all features of a head, and so the logits, stay the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cs336.files import UserError, creating, read_json, write_json
from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.tokens.codec import end_of_text_id, is_huggingface

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_MODULES = {
    "token_embeddings": "model.embed_tokens",
    "ln_final": "model.norm",
    "lm_head": "lm_head",
    # of a layer
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.output_proj": "self_attn.o_proj",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "ffn.w1": "mlp.gate_proj",
    "ffn.w2": "mlp.down_proj",
    "ffn.w3": "mlp.up_proj",
    "ln1": "input_layernorm",
    "ln2": "post_attention_layernorm",
}


# ---- in


def load_huggingface(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    context_length: int | None = None,
) -> TransformerLM:
    """Read a checkpoint as transformers and the Hub have it, in evaluation mode.

    Reads `config.json` and safetensors weights, in one file or several with their index. Besides
    the model, memory holds one tensor at a time.

    Args:
        dtype: of the weights; as stored by default.
        context_length: keep a smaller table of rotary positions than the checkpoint allows.

    Raises:
        UserError: files are missing or damaged, the architecture is another, or the checkpoint uses
            what this model has not.
    """
    values = read_json(folder / "config.json")
    try:
        config = config_from_huggingface(values)
        if context_length is not None:
            if context_length > config.context_length:
                raise ValueError(f"its context is {config.context_length} tokens, not {context_length}; ask for fewer")
            config = replace(config, context_length=context_length)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None
    model = TransformerLM.without_weights(config, device=device, dtype=dtype or _stored_dtype(values, folder))
    try:
        load_huggingface_weights(model, _stored_tensors(folder))
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None
    return model.eval()


@torch.no_grad()
def load_huggingface_weights(model: TransformerLM, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Copy weights by their names and order of rows there into a model, in place; from any device and dtype.

    Raises:
        ValueError: a name that the model has not, one that is missing, or a shape that differs. The weights before it
            have been copied.
    """
    waiting = {huggingface_name(name): (name, weight) for name, weight in _weights_once(model)}
    for name, tensor in weights:
        if name not in waiting:
            if (name == "lm_head.weight" and model.config.tied) or name.endswith("rotary_emb.inv_freq"):
                continue  # written by some although it follows from the rest
            raise ValueError(f"holds {name}, which a model of this config has not")
        own_name, weight = waiting.pop(name)
        if weight.shape != tensor.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, its config says {tuple(weight.shape)}")
        weight.copy_(_imported(own_name, tensor, model.config))
    if waiting:
        raise ValueError(f"lacks {', '.join(sorted(waiting)[:3])}{', ...' if len(waiting) > 3 else ''}")


def huggingface_weights(model: TransformerLM) -> Iterator[tuple[str, Tensor]]:
    """All weights by their names and order of rows there, without gradient; a head that is the embedding is left out.

    Those whose rows need no other order are the model's own memory, not copies.
    """
    for name, weight in _weights_once(model):
        yield huggingface_name(name), _exported(name, weight, model.config)


def config_from_huggingface(values: dict[str, Any]) -> ModelConfig:
    """Our shape of a checkpoint, from the content of its `config.json`.

    Raises:
        ValueError: the architecture is another, or has a feature that this model has not.
    """
    kind = values.get("model_type")
    if kind not in _ARCHITECTURES:
        raise ValueError(f"model_type {kind!r} is not read; {', '.join(_ARCHITECTURES)} are")
    rope = values.get("rope_parameters") or {}  # transformers 5
    rope = {"rope_theta": values.get("rope_theta", 10_000.0)} | (values.get("rope_scaling") or {}) | rope
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    refused = {
        f"hidden_act={values.get('hidden_act')!r}": values.get("hidden_act", "silu") != "silu",
        "sliding-window attention": bool(values.get("use_sliding_window"))
        or "sliding_attention" in (values.get("layer_types") or ()),
        "quantized weights": "quantization_config" in values,
        f"rope_type={rope_type!r}": rope_type not in ("default", "llama3"),
        "partial rotation": rope.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0)) != 1.0,
    }
    if any(refused.values()):
        raise ValueError(f"uses {', '.join(name for name, used in refused.items() if used)}, which this model has not")
    try:
        all_biases = bool(values.get("attention_bias", False))
        num_heads = values["num_attention_heads"]
        config = ModelConfig(
            context_length=values["max_position_embeddings"],
            d_model=values["hidden_size"],
            num_layers=values["num_hidden_layers"],
            num_heads=num_heads,
            d_ff=values["intermediate_size"],
            vocab_size=values["vocab_size"],
            num_kv_heads=values.get("num_key_value_heads") or num_heads,
            # transformers' own default, where the file does not say
            head_dim=values.get("head_dim") or (128 if kind == "qwen3" else values["hidden_size"] // num_heads),
            norm_eps=values.get("rms_norm_eps", 1e-6),
            qk_norm=kind == "qwen3",
            rope_theta=float(rope["rope_theta"]),
            rope_layout="half",
            qkv_bias=all_biases or kind == "qwen2",
            output_bias=all_biases and kind != "qwen2",
            ffn_bias=bool(values.get("mlp_bias", False)) and kind == "llama",
            tied=bool(values.get("tie_word_embeddings", False)),
        )
        if rope_type == "llama3":
            config = replace(
                config,
                rope_factor=float(rope["factor"]),
                rope_original_context=rope["original_max_position_embeddings"],
                rope_low_frequency=float(rope["low_freq_factor"]),
                rope_high_frequency=float(rope["high_freq_factor"]),
            )
    except KeyError as error:
        raise ValueError(f"config.json lacks {error.args[0]!r}") from None
    return config


_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def _stored_dtype(values: dict[str, Any], folder: Path) -> torch.dtype:
    name = values.get("dtype") or values.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UserError(f"{folder}: dtype {name!r} is not read; float32, float16 and bfloat16 are")
    return dtype


def _weights_once(model: TransformerLM) -> Iterator[tuple[str, Tensor]]:
    """Names and weights without gradient; a head that is the embedding is left out."""
    for name, weight in model.state_dict().items():
        if not (name == "lm_head.weight" and model.config.tied):
            yield name, weight


def huggingface_name(name: str) -> str:
    """`layers.0.attn.q_proj.weight` -> `model.layers.0.self_attn.q_proj.weight`."""
    module, _, kind = name.rpartition(".")
    if module.startswith("layers."):
        _, number, part = module.split(".", 2)
        return f"model.layers.{number}.{_MODULES[part]}.{kind}"
    return f"{_MODULES[module]}.{kind}"


def _stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a checkpoint, one at a time."""
    if (folder / INDEX_FILE).exists():
        index = read_json(folder / INDEX_FILE)
        files = [folder / name for name in sorted(set(index["weight_map"].values()))]
    else:
        files = [folder / WEIGHTS_FILE]
    for path in files:
        if not path.exists():
            raise UserError(f"{path}: not found; weights are read from safetensors files alone, not from *.bin")
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - no mapping
                    yield name, tensors.get_tensor(name)
        except SafetensorError as error:
            raise UserError(f"{path}: not a readable safetensors file ({error}); fetch it again") from None


# ---- out


def save_huggingface(
    model: TransformerLM,
    folder: Path,
    *,
    tokenizer: Any = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a checkpoint that transformers and vLLM open as it is; whole or not at all.

    Args:
        folder: new, or empty.
        tokenizer: ours, or one of transformers; its files are written too, and its end-of-text token ends generation.
        dtype: float32 or bfloat16; as the model has them by default.
        max_shard_bytes: of one weights file, unless one tensor is larger; more than one get an index.

    Raises:
        ValueError: the model has a setting that no architecture there has.
        UserError: the folder holds something, or the disk is full; nothing is left behind.
    """
    weights = dict(_weights_once(model))
    values = huggingface_config(model.config)
    dtype = dtype or next(iter(weights.values())).dtype
    values["torch_dtype"] = str(dtype).removeprefix("torch.")
    end_of_text = None if tokenizer is None else end_of_text_id(tokenizer)
    # Without a tokenizer null, else Llama's own numbers would be taken.
    values |= {"bos_token_id": getattr(tokenizer, "bos_token_id", end_of_text), "eos_token_id": end_of_text}
    with creating(folder) as work:
        write_json(work / "config.json", values)
        if tokenizer is not None:
            (tokenizer.save_pretrained if is_huggingface(tokenizer) else tokenizer.save)(work)
        shards = _shards(weights, max_shard_bytes, dtype.itemsize)
        index: dict[str, str] = {}
        for number, names in enumerate(shards, 1):
            file = WEIGHTS_FILE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            tensors = {
                huggingface_name(name): _exported(name, weights[name], model.config).to("cpu", dtype).contiguous()
                for name in names
            }
            save_file(tensors, work / file, metadata={"format": "pt"})
            index |= dict.fromkeys(tensors, file)
        if len(shards) > 1:
            total = sum(weight.numel() for weight in weights.values()) * dtype.itemsize
            write_json(work / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": index})


def huggingface_config(config: ModelConfig) -> dict[str, Any]:
    """The content of `config.json` for a model of this shape.

    Dropout is left out: it does nothing outside training.

    Raises:
        ValueError: no architecture there has all of its settings.
    """
    needed = {"norm": "pre", "norm_kind": "rms", "positions": "rope", "feed_forward": "swiglu"}
    wrong = [f"{name}={getattr(config, name)!r}" for name, value in needed.items() if getattr(config, name) != value]
    if config.qkv_bias != config.output_bias:  # Qwen2 alone, with this one combination
        kind = "qwen2"
        wrong += ["output_bias without qkv_bias"] if config.output_bias else []
        wrong += ["qk_norm with qkv_bias alone"] if config.qk_norm else []
        wrong += ["ffn_bias with qkv_bias alone"] if config.ffn_bias else []
        # Its readers do not agree on whether a Qwen2 may say how wide its heads are.
        wrong += (
            ["head_dim with qkv_bias alone"] if config.features_per_head * config.num_heads != config.d_model else []
        )
    elif config.qk_norm:
        kind = "qwen3"
        wrong += ["ffn_bias with qk_norm"] if config.ffn_bias else []
    else:
        kind = "llama"
    if wrong:
        raise ValueError(f"Llama, Qwen2 and Qwen3, as transformers has them, know no {', no '.join(wrong)}")
    values: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.hidden_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        # As before transformers 5, whose readers, like all others, understand it.
        "rope_theta": config.rope_theta,
    }
    if config.rope_factor != 1:
        values["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": config.rope_factor,
            "low_freq_factor": config.rope_low_frequency,
            "high_freq_factor": config.rope_high_frequency,
            "original_max_position_embeddings": config.rope_original_context,
        }
    if kind != "qwen2":
        values |= {"head_dim": config.features_per_head, "attention_bias": config.qkv_bias}
    if kind == "llama":
        values["mlp_bias"] = config.ffn_bias
    return values


def _shards(weights: dict[str, Tensor], max_shard_bytes: int, bytes_per_number: int) -> list[list[str]]:
    """Names in their order, cut where a file would become too large."""
    shards: list[list[str]] = [[]]
    room = max_shard_bytes
    for name, weight in weights.items():
        size = weight.numel() * bytes_per_number
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= size
    return shards


def _exported(name: str, weight: Tensor, config: ModelConfig) -> Tensor:
    """A weight in their order of rows."""
    heads = _turned_heads(name, config)
    # Row 2k + i of a head goes to row k + i * head_dim/2.
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2) if heads else weight


def _imported(name: str, weight: Tensor, config: ModelConfig) -> Tensor:
    """A weight in the model's order of rows, from theirs."""
    heads = _turned_heads(name, config)
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2) if heads else weight


def _turned_heads(name: str, config: ModelConfig) -> int:
    """Heads whose rows stand in another order there; 0 for a weight that has none such."""
    if config.rope_layout == "half":
        return 0
    module = name.rpartition(".")[0].rpartition(".")[2]
    return {"q_proj": config.num_heads, "k_proj": config.kv_heads, "q_norm": 1, "k_norm": 1}.get(module, 0)
