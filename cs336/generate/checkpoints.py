"""A model with its tokenizer, wherever it is: a folder of ours, a Hugging Face checkpoint, or one of the hub's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from cs336 import catalog
from cs336.files import UserError, read_json
from cs336.generate.backend import codec_of
from cs336.generate.engine import TextCodec
from cs336.model.huggingface import load_huggingface
from cs336.model.transformer import TransformerLM, load_model
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokenizer.formats import HUGGING_FACE_FILE, OWN_FILE
from cs336.tokens.codec import is_huggingface

_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt")
_TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class Checkpoint:
    """A model that has been read.

    Attributes:
        model: in evaluation mode.
        tokenizer: ours, or one of transformers where the folder has theirs.
        folder: where the weights were found.
        is_huggingface: the folder is in the form that transformers and vLLM read.
    """

    model: TransformerLM
    tokenizer: Any
    folder: Path
    is_huggingface: bool

    @property
    def codec(self) -> TextCodec:
        """The tokenizer as generation needs it."""
        return codec_of(self.tokenizer)


def load_checkpoint(
    source: Path | str,
    *,
    tokenizer: Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    max_context: int = 0,
) -> Checkpoint:
    """Read a model and its tokenizer.

    Args:
        source: a folder, an entry of the catalogue such as "llama-3.1-8b", or a name on the hub.
        tokenizer: folder of ours, of a model that has none beside it; the folder `tokenizer` next to it by default.
        dtype: of the weights; as they are stored by default.
        max_context: keep no more positions of an imported checkpoint than these; 0 keeps all.

    Raises:
        UserError: no such model, or a file of it is missing or damaged; the line says what to do.
    """
    folder = find_checkpoint(source)
    values = read_json(folder / "config.json")
    if "model_type" in values:
        most = values.get("max_position_embeddings", 0)
        context = min(max_context, most) if max_context and most else None
        model = load_huggingface(folder, device=device, dtype=dtype, context_length=context)
        return Checkpoint(model, load_tokenizer(folder), folder, True)
    model = load_model(folder, device=device, dtype=dtype or _stored_dtype(folder / "model.safetensors"))
    codec = load_tokenizer(folder, elsewhere=tokenizer)
    if not is_huggingface(codec) and codec.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has {codec.vocab_size:,} tokens, the model knows {model.config.vocab_size:,};"
            " they are not of the same training"
        )
    return Checkpoint(model, codec, folder, False)


def _stored_dtype(path: Path) -> torch.dtype:
    """The type of a model's weights; fp32 where `load_model` will say what is wrong."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return file.get_slice("token_embeddings.weight")[:1].dtype
    except (FileNotFoundError, SafetensorError):
        return torch.float32


def find_checkpoint(source: Path | str) -> Path:
    """The folder of a model; what is on the hub alone is downloaded, unless the catalogue knows it.

    Raises:
        UserError: there is no such model.
    """
    folder = Path(source).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise UserError(f"{folder}: holds no finished model (config.json)")
    known = {entry.origin.lower(): name for name, entry in catalog.ENTRIES.items() if entry.kind == "model"}
    name = known.get(str(source).lower(), str(source))
    if name in catalog.ENTRIES:
        return catalog.require(name)
    if isinstance(source, Path) or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise UserError(
            f"{source}: no such folder; give that of a model, or a name on the hub such as Qwen/Qwen2.5-0.5B"
        )
    return _from_hub(source)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # its HTTP client's errors have no common class
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{name}: no folder here, and the hub does not give it ({reason})") from None


def load_tokenizer(folder: Path, *, elsewhere: Path | None = None) -> Any:
    """The tokenizer of a model in a folder: ours, or one of transformers.

    Args:
        elsewhere: folder of ours to take instead.

    Raises:
        UserError: there is none, it is damaged, or it is read by transformers, which is not installed.
    """
    if elsewhere is not None:
        return Tokenizer.load(elsewhere)
    if "model_type" in read_json(folder / "config.json"):
        return _transformers_tokenizer(folder)
    if (folder / OWN_FILE).is_file():
        return Tokenizer.load(folder)
    if (folder / _TOKENIZER_CONFIG).is_file():
        return _transformers_tokenizer(folder)
    if (folder / HUGGING_FACE_FILE).is_file():
        return Tokenizer.load(folder)
    beside = folder.resolve().parent / "tokenizer"
    if not beside.is_dir():
        raise UserError(f"{folder}: has no tokenizer with it; copy {OWN_FILE} of the one it was trained with there")
    return Tokenizer.load(beside)


def _transformers_tokenizer(folder: Path) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UserError(
            f"{folder}: its tokenizer is read by transformers, which is not installed; pip install transformers"
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{folder}: transformers finds no tokenizer there ({reason})") from None
    if not tokenizer.encode("a", add_special_tokens=False):  # what it makes where there are no files, without a word
        raise UserError(f"{folder}: its tokenizer reads no letter; copy tokenizer.json of the same checkpoint there")
    return tokenizer
