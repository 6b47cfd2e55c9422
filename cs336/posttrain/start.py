"""Where a policy starts: this project's base model, or a checkpoint of the Hub; and how policies are read again."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cs336.download import cached_sha256
from cs336.files import UserError, read_json, write_json
from cs336.generate.checkpoints import find_checkpoint, load_checkpoint, load_tokenizer
from cs336.generate.generators import GENERATORS
from cs336.model.huggingface import config_from_huggingface
from cs336.model.transformer import ModelConfig, TransformerLM

CHECKPOINT_FILE = "checkpoint.json"  # of a folder that only says which checkpoint it is

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """The policy that is trained, and what generates its rollouts.

    Attributes:
        start: "" for the preset's own base model; a catalogue entry, such as "qwen2.5-math-1.5b"; its id on the Hub,
            such as "Qwen/Qwen2.5-Math-1.5B"; or a folder with a checkpoint.
        dtype: of its weights, "float32" or "bfloat16".
        context_length: at most, of an imported checkpoint, whose own may be longer than anything here; 0 keeps it.
        generator: "ours" or "vllm".
        generator_device: "" for the policy's own; "cuda:1" for another GPU, so that neither has to make room. There
            vLLM is a server of its own.
        hand_over: one device cannot hold generator and trainer at once: they take turns, or ours takes a second GPU.
        memory_share: of the device, for vLLM's weights and cache. The trainer's weights, gradients and moments stay
            beside it, even where they take turns; the handout's 0.85 is for a GPU of its own.
    """

    start: str = ""
    dtype: str = "float32"
    context_length: int = 0
    generator: str = "ours"
    generator_device: str = ""
    hand_over: bool = False
    memory_share: float = 0.4

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype is {' or '.join(_DTYPES)}, got {self.dtype!r}")
        if self.generator not in GENERATORS:
            raise ValueError(f"generator is {' or '.join(GENERATORS)}, got {self.generator!r}")
        if not re.fullmatch(r"(cuda(:\d+)?)?", self.generator_device):
            raise ValueError(f'generator_device is "" or a GPU such as "cuda:1", got {self.generator_device!r}')
        if self.context_length < 0:
            raise ValueError(f"context_length is {self.context_length}; give 0 or a number of tokens")
        if not 0 < self.memory_share < 1:
            raise ValueError(f"memory_share lies between 0 and 1, got {self.memory_share}")

    def identity(self) -> dict[str, Any]:
        """The settings that shape a policy, and the checksums of a checkpoint's files instead of where they lie.

        How devices are shared out is none of these.

        Raises:
            UserError: the checkpoint is not here.
        """
        settings = dataclasses.asdict(self)
        for of_devices in ("generator_device", "hand_over", "memory_share"):
            del settings[of_devices]
        if not self.start:
            return settings
        files = sorted(path for path in find_checkpoint(self.start).iterdir() if path.suffix in _PARTS)
        return settings | {"start": {path.name: cached_sha256(path) for path in files}}


_PARTS = (".safetensors", ".json", ".txt")


def write_start(folder: Path, config: PolicyConfig) -> None:
    """Note a checkpoint in a folder, which `load_policy` reads as if it lay there; its files stay where they are."""
    find_checkpoint(config.start)
    write_json(folder / CHECKPOINT_FILE, {"start": config.start})


def load_policy(folder: Path, config: PolicyConfig, *, device: torch.device | str = "cpu") -> tuple[TransformerLM, Any]:
    """Model, in evaluation mode, and tokenizer: of a run of ours, or of the checkpoint that `write_start` noted.

    Raises:
        UserError: the checkpoint is not here or is none that can be read, or its tokenizer needs a package that is not
            installed.
    """
    read = load_checkpoint(_home(folder), device=device, dtype=_DTYPES[config.dtype], max_context=config.context_length)
    return read.model, read.tokenizer


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
    return dataclasses.replace(
        shape, context_length=min(config.context_length or shape.context_length, shape.context_length)
    )


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer that `load_policy` would read: ours, or one of transformers.

    Raises:
        UserError: as of `load_policy`.
    """
    return load_tokenizer(_home(folder))


def _home(folder: Path) -> Path:
    """Where the files of a policy are."""
    note = folder / CHECKPOINT_FILE
    return find_checkpoint(read_json(note)["start"]) if note.exists() else folder
