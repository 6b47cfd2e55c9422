"""Where a policy starts: this project's base model, or a checkpoint of the Hub; and how policies are read again."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cs336 import catalog
from cs336.download import cached_sha256
from cs336.files import UserError, read_json, write_json
from cs336.model.huggingface import load_huggingface
from cs336.model.transformer import TransformerLM, load_model
from cs336.posttrain.generators import GENERATORS
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokenizer.formats import OWN_FILE

CHECKPOINT_FILE = "checkpoint.json"  # of a folder that only says which checkpoint it is

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """The policy that is trained, and what generates its rollouts.

    Attributes:
        start: "" for the preset's own base model; a catalogue entry, such as "qwen2.5-math-1.5b"; its id on the Hub,
            such as "Qwen/Qwen2.5-Math-1.5B"; or a folder with a checkpoint.
        dtype: of its weights, "float32" or "bfloat16".
        context_length: of an imported checkpoint, whose own may be longer than anything here; 0 keeps it.
        generator: "ours" or "vllm".
        hand_over: one device cannot hold generator and trainer at once: they take turns, or ours takes a second GPU.
    """

    start: str = ""
    dtype: str = "float32"
    context_length: int = 0
    generator: str = "ours"
    hand_over: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype is {' or '.join(_DTYPES)}, got {self.dtype!r}")
        if self.generator not in GENERATORS:
            raise ValueError(f"generator is {' or '.join(GENERATORS)}, got {self.generator!r}")
        if self.context_length < 0:
            raise ValueError(f"context_length is {self.context_length}; give 0 or a number of tokens")

    def identity(self) -> dict[str, Any]:
        """All settings, and the checksums of a checkpoint's files instead of where they lie.

        Raises:
            UserError: the checkpoint is not here.
        """
        settings = dataclasses.asdict(self)
        if not self.start:
            return settings
        files = sorted(path for path in checkpoint_folder(self.start).iterdir() if path.suffix in _PARTS)
        return settings | {"start": {path.name: cached_sha256(path) for path in files}}


_PARTS = (".safetensors", ".json", ".txt")


def checkpoint_folder(start: str) -> Path:
    """The folder of a checkpoint that a preset starts from.

    Raises:
        UserError: it is not on this machine; the line says how to get it.
    """
    names = {entry.origin.lower(): name for name, entry in catalog.ENTRIES.items() if entry.kind == "model"}
    name = names.get(start.lower(), start)
    if name in catalog.ENTRIES:
        return catalog.require(name)
    folder = Path(os.path.expanduser(start))
    if not (folder / "config.json").exists():
        raise UserError(
            f"{start}: no folder with a checkpoint, nor one of {', '.join([*names, *names.values()])}; download it,"
            " and give its folder as policy.start"
        )
    return folder


def write_start(folder: Path, config: PolicyConfig) -> None:
    """Note a checkpoint in a folder, which `load_policy` reads as if it lay there; its files stay where they are."""
    checkpoint_folder(config.start)
    write_json(folder / CHECKPOINT_FILE, {"start": config.start})


def load_policy(folder: Path, config: PolicyConfig, *, device: torch.device | str = "cpu") -> tuple[TransformerLM, Any]:
    """Model, in evaluation mode, and tokenizer: of a run of ours, or of the checkpoint that `write_start` noted.

    Raises:
        UserError: the checkpoint is not here or is none that can be read, or its tokenizer needs a package that is not
            installed.
    """
    if (folder / CHECKPOINT_FILE).exists():
        folder = checkpoint_folder(read_json(folder / CHECKPOINT_FILE)["start"])
    dtype = _DTYPES[config.dtype]
    if "model_type" in read_json(folder / "config.json"):
        length = config.context_length or None
        model = load_huggingface(folder, device=device, dtype=dtype, context_length=length)
    else:
        model = load_model(folder, device=device, dtype=dtype)
    if (folder / OWN_FILE).exists():
        return model, Tokenizer.load(folder)
    return model, _tokenizer_of_transformers(folder)


def _tokenizer_of_transformers(folder: Path) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UserError(
            f"{folder}: its tokenizer is read by transformers, which is not installed; pip install 'cs336[gpu]' or"
            " pip install transformers"
        ) from None
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"{folder}: has no tokenizer.json; put the checkpoint's tokenizer files beside its weights")
    return AutoTokenizer.from_pretrained(folder)
