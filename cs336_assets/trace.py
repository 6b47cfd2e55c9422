"""Where a token came from, and what a training batch was made of."""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

from cs336.files import UserError, read_json
from cs336.fingerprint import digest
from cs336.presets import Preset
from cs336.store import Store
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokens.index import locate
from cs336.tokens.shards import concatenate, open_tokens
from cs336_assets.asset import data_version
from cs336_assets.flow import STAGES
from cs336_assets.why import artifact, shard_names_of

NUM_AROUND = 16  # tokens shown on either side
_SHOWN = 100  # characters of a stretch of a batch


def trace_token(store: Store, shard: str, split: str, position: int) -> Iterator[str]:
    """A token, the text around it, its document, and the record that this was read from.

    Raises:
        UserError: there is no such shard or token, or an artifact is missing.
    """
    shards = shard_names_of(store)
    if shard not in shards:
        some = ", ".join(shards[:8]) + (", ..." if len(shards) > 8 else "")
        raise UserError(f"{store.preset} has no shard {shard!r}; there are {some}")
    folder = artifact(store, "token_shards", shard)
    tokens = open_tokens(folder / f"{split}.bin")
    try:
        document = locate(folder, split, position)
    except IndexError:
        raise UserError(
            f"{folder / split}.bin has {len(tokens):,} tokens; give a position from 0 to {len(tokens) - 1:,}"
        ) from None
    tokenizer = Tokenizer.load(artifact(store, "tokenizer"))
    before = tokens[max(position - NUM_AROUND, 0) : position]
    after = tokens[position + 1 : position + 1 + NUM_AROUND]
    token = int(tokens[position])
    middle = _shown(tokenizer, [token])
    last = document.first_token + document.num_tokens - 1
    yield f"token        {position:,} of {shard}/{split}.bin: id {token:,}, {middle!r}"
    yield f"text         {_shown(tokenizer, before)}[{middle}]{_shown(tokenizer, after)}"
    yield (
        f"document     {document.row:,} of the shard, tokens {document.first_token:,} to {last:,}; this is its token"
        f" {position - document.first_token + 1:,} of {document.num_tokens:,}"
    )
    yield f"page         {document.url}"
    yield f"WARC record  {document.warc} at byte {document.offset:,}, {document.id}"
    yield f"its story    cs336 why '{document.url}' --preset {store.preset}"


def trace_batch(store: Store, preset: Preset, step: int, *, num_shown: int) -> Iterator[str]:
    """The stretches of text in the batch of one training step, and where each was read.

    The step is counted from 1, as in `metrics.jsonl`. Settings are those that the base model was trained
    with, or before that those of the preset; batches are drawn as the training loop draws them.

    Args:
        num_shown: stretches at most; 0 is all.

    Raises:
        UserError: there is no such step, or an artifact is missing.
    """
    from cs336.tokens.batches import Batches, documents_at

    run, trained = _run_of(store, preset)
    num_steps, length = run["train"]["num_steps"], run["model"]["context_length"]
    if not 1 <= step <= num_steps:
        raise UserError(f"{preset.name}: training has {num_steps:,} steps; give one from 1 to {num_steps:,}")
    folders = [artifact(store, *name.split("/")) for name in run["token_shards"]]
    tokenizer = Tokenizer.load(artifact(store, "tokenizer"))
    tokens = concatenate(folders, "train")
    try:
        starts = Batches(
            tokens, batch_size=run["train"]["batch_size"], context_length=length, seed=run["seed"], device="cpu"
        ).starts(step - 1)
    except ValueError as error:  # too few tokens
        raise UserError(f"{preset.name}: {error}") from None
    yield (
        f"step {step:,} of {num_steps:,}, seed {run['seed']}: {len(starts):,} stretches of {length:,} tokens"
        + ("" if trained else " (as the preset has it; not trained yet)")
    )
    if trained and _shards_changed(store):
        yield "  note: the token shards were made again after this training; these are today's"
    shown = starts.tolist()[: num_shown or None]
    ends = list(itertools.accumulate(len(open_tokens(folder / "train.bin")) for folder in folders))
    for number, start in enumerate(shown, 1):
        place = bisect_right(ends, start)
        first = start - (ends[place - 1] if place else 0)  # in its shard
        text = textwrap.shorten(_shown(tokenizer, tokens[start : start + length]), _SHOWN, placeholder=" ...")
        yield f"\n{number:>4}  {folders[place].name}, {length:,} tokens from {first:,}: {text}"
        for document in documents_at(folders, "train", [start], length + 1):
            yield f"      {document.url} ({document.warc} at byte {document.offset:,})"
    if len(shown) < len(starts):
        yield f"\n{len(starts) - len(shown):,} more; -n 0 shows all"


def _run_of(store: Store, preset: Preset) -> tuple[dict[str, Any], bool]:
    """What the base model was trained with, as `run.json` has it, and whether it was."""
    path = store.path("base_model") / "run.json"
    if path.exists():
        return read_json(path), True
    run = {"model": dataclasses.asdict(preset.model), "train": dataclasses.asdict(preset.train), "seed": preset.seed}
    return run | {"token_shards": [f"token_shards/{shard}" for shard in shard_names_of(store)]}, False


def _shards_changed(store: Store) -> bool:
    """Whether the token shards are others than the base model's manifest names."""
    manifest = store.manifest("base_model")
    used = manifest and manifest["inputs"].get("token_shards")
    shards = shard_names_of(store)
    assert "token_shards" in STAGES  # all are declared: versions ask what each offers
    return used != digest([[shard, data_version("token_shards", store, shard)] for shard in shards])


def _shown(tokenizer: Tokenizer, ids: Any) -> str:
    """Tokens as text on one line."""
    return tokenizer.decode([int(token) for token in ids]).replace("\n", "\\n").replace("\r", "\\r")
