"""What autograd keeps for a backward pass: which tensors, of what size, and the line of ours that made them be kept."""

from __future__ import annotations

import linecache
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

COMPILED = "compiled code"  # which is no line of ours
_OURS, _MACHINERY = "/cs336/", "/cs336/profiling/"


@dataclass(frozen=True)
class SavedTensor:
    """One storage that the graph holds.

    Attributes:
        num_bytes: of the whole storage, however often and through which views it is kept.
        shape: of the first tensor that was kept of it.
        origin: innermost line of ours when that happened: file, line, function, source.
    """

    num_bytes: int
    shape: tuple[int, ...]
    dtype: str
    origin: str


def saved_tensors(run: Callable[[], Any], *, excluded: Iterable[Tensor] = ()) -> list[SavedTensor]:
    """Run something and list what autograd keeps of it, in order, each storage once.

    Args:
        run: such as a block's forward pass; what it returns is dropped. On the device "meta" it costs nothing.
        excluded: tensors that are there anyway, such as parameters.
    """
    known = {_storage(tensor) for tensor in excluded}
    held: list[Tensor] = []  # so that no storage is freed and its place used again
    found: list[SavedTensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage not in known:
            known.add(storage)
            held.append(tensor)
            num_bytes = tensor.untyped_storage().nbytes()
            dtype = str(tensor.dtype).removeprefix("torch.")
            found.append(SavedTensor(num_bytes, tuple(tensor.shape), dtype, _origin()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return found


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # data pointers are all 0 on the device "meta"


def _origin() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename.replace("\\", "/")
        if "/torch/_dynamo/" in name or "/torch/_functorch/" in name:
            return COMPILED
        if _OURS in name and _MACHINERY not in name:
            source = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
            return f"{name.rpartition(_OURS)[2]}:{frame.f_lineno} {frame.f_code.co_name}: {source}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def largest_contributors(saved: Sequence[SavedTensor], count: int = 5) -> list[dict[str, Any]]:
    """The lines that keep most: bytes, share of all, and the shapes they keep; of compiled code, shape by shape."""
    total = sum(each.num_bytes for each in saved)
    by_line: dict[tuple[str, str], list[SavedTensor]] = {}
    for each in saved:
        by_line.setdefault((each.origin, _shape(each) if each.origin == COMPILED else ""), []).append(each)
    ordered = sorted(by_line.items(), key=lambda item: -sum(each.num_bytes for each in item[1]))[:count]
    return [
        {
            "origin": line,
            "num_bytes": (num_bytes := sum(each.num_bytes for each in kept)),
            "share": num_bytes / total,
            "tensors": ", ".join(f"{times} of {shape}" for shape, times in Counter(map(_shape, kept)).items()),
        }
        for (line, _), kept in ordered
    ]


def _shape(saved: SavedTensor) -> str:
    return f"{saved.dtype} {'x'.join(map(str, saved.shape))}"
