"""Our models as other libraries open them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Unavailable
from cs336.model.huggingface import save_huggingface
from cs336.model.transformer import TransformerLM


def transformers_twin(model: TransformerLM) -> Any:
    """transformers' model of the same shape with the same weights, on the same device.

    Raises:
        Unavailable: transformers is not installed.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise Unavailable(f"not installed: {error}") from None
    with tempfile.TemporaryDirectory() as folder:
        save_huggingface(model, Path(folder))
        twin = AutoModelForCausalLM.from_pretrained(folder, dtype=model.lm_head.weight.dtype)
    return twin.to(model.lm_head.weight.device)
