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
from cs336.model.huggingface import config_from_huggingface, load_huggingface
from cs336.model.transformer import ModelConfig, TransformerLM, load_model
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
    home, dtype = _home(folder), _DTYPES[config.dtype]
    if "model_type" in read_json(home / "config.json"):
        length = config.context_length or None
        model = load_huggingface(home, device=device, dtype=dtype, context_length=length)
    else:
        model = load_model(home, device=device, dtype=dtype)
    return model, load_tokenizer(folder)


def shape_of(folder: Path, config: PolicyConfig) -> ModelConfig:
    """The shape of the model that `load_policy` would read, without its weights.

    Raises:
        UserError: as of `load_policy`.
    """
    path = _home(folder) / "config.json"
    values = read_json(path)
    if "model_type" not in values:
        return ModelConfig(**values)
    try:
        shape = config_from_huggingface(values)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return dataclasses.replace(shape, context_length=config.context_length or shape.context_length)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer that `load_policy` would read: ours, or one of transformers.

    Raises:
        UserError: as of `load_policy`.
    """
    home = _home(folder)
    if (home / OWN_FILE).exists():
        return Tokenizer.load(home)
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UserError(
            f"{home}: its tokenizer is read by transformers, which is not installed; pip install 'cs336[gpu]' or"
            " pip install transformers"
        ) from None
    if not (home / "tokenizer.json").exists():
        raise UserError(f"{home}: has no tokenizer.json; put the checkpoint's tokenizer files beside its weights")
    return AutoTokenizer.from_pretrained(home)


def _home(folder: Path) -> Path:
    """Where the files of a policy are."""
    note = folder / CHECKPOINT_FILE
    return checkpoint_folder(read_json(note)["start"]) if note.exists() else folder
