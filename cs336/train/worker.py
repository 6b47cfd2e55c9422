"""One training process, alone or one of several: `torchrun --nproc-per-node 4 -m cs336.train.worker run.json`.

`run.json` describes the whole run; the process needs nothing else of this project's data side, so
it also runs on machines that have PyTorch and little more.

    {"model": {...}, "train": {...}, "seed": 0, "folder": "out",
     "token_shards": ["folder of a shard", ...],
     "tokenizer": "folder of the tokenizer",
     "device": "auto", "compile": false, "num_threads": 2}

The last four may be left out; the tokenizer is needed only where the model writes samples, or where `model`
does not say its `vocab_size`. The folder
gets `metrics.jsonl` (a line a step), `checkpoints/`, `samples.jsonl`, and at the end `config.json` and
`model.safetensors`. The same command goes on with a run that was stopped, in any form on any number of processes.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from cs336.files import UserError, read_json
from cs336.hardware import pick_device
from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.parallel.failures import one_voice, speak_when_ended
from cs336.parallel.process_group import Rank, process_group
from cs336.processes import die_with_parent
from cs336.progress import Progress, bar, silent
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokens.batches import documents_at
from cs336.tokens.shards import concatenate, largest_token_id
from cs336.train.loop import NotFinite, TrainConfig, train
from cs336.train.metrics import Report
from cs336.train.parallel_forms import FORMS


def main(arguments: list[str] | None = None) -> int:
    """Train what the file describes, with a progress bar."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"{_settings('model', ModelConfig)}\n\n{_settings('train', TrainConfig)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="run.json")
    parser.add_argument(
        "--parallel", choices=list(FORMS), default="ddp", help="how several processes share the run (ddp)"
    )
    parser.add_argument(
        "--recompute", type=int, default=0, metavar="N", help="run segments of N layers again in the backward pass (0)"
    )
    options = parser.parse_args(arguments)
    path = options.run
    rows: list[dict[str, Any]] = []
    try:
        with one_voice(None):
            run = read_json(path)
        run_training(
            run,
            name=str(path),
            parallel=options.parallel,
            recompute=options.recompute,
            report=rows.append,
            progress=bar if is_first_rank() else silent,
            say_end=lambda line: print(f"\n{path}: {line}", file=sys.stderr, flush=True),
        )
    except UserError as error:
        print("" if is_first_rank() else "\n", error, sep="", file=sys.stderr)  # the first's bar may stand unfinished
        return 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # torchrun passes on what the terminal has sent already
        step = f" after step {rows[-1]['step']:,}" if rows else ""
        print(f"\n{path}: interrupted{step}; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    if not is_first_rank():
        return 0
    if not rows:
        print(f"{run['folder']}: was finished already")
    else:
        last = rows[-1]
        losses = f"training loss {last['train_loss']:.3f}, held-out loss {last['valid_loss']:.3f}"
        print(f"{run['folder']}: {last['step']:,} steps in {last['seconds']:,.0f} s, {losses}")
    return 0


def is_first_rank() -> bool:
    """Whether this process is the one of its job that writes; true of a process that is alone."""
    return os.environ.get("RANK", "0") == "0"


def leave(main: Callable[[], int]) -> NoReturn:
    """Run a process's main function and end with its exit code.

    One of several processes that failed ends at once: taking leave of NCCL could wait for what nobody joins any more.
    """
    try:
        code: Any = main()
    except SystemExit as end:
        code = end.code
    if code and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
    sys.exit(code)


def run_training(
    run: dict[str, Any],
    *,
    name: str,
    parallel: str = "ddp",
    recompute: int = 0,
    report: Report = lambda row: None,
    progress: Progress,
    say_end: Callable[[str], None] | None = None,
) -> TransformerLM | None:
    """Train from a run description, together with the other processes that torchrun has started.

    Args:
        run: see the module's description; unknown settings are errors.
        name: of the file it was read from, for errors.
        parallel: how several processes share the run, one of `FORMS`; means nothing to a process that is alone.
        recompute: layers in each segment that the backward pass runs again to save memory; 0 keeps all.
        report: called with every row of metrics, on each rank.
        say_end: called on one rank of several that torchrun ends because another was killed.

    Returns:
        The model; of a form that shards it, on rank 0 alone.

    Raises:
        UserError: a setting that is missing, does not exist or does not fit the data or the number of processes.
        SystemExit: another rank says what went wrong.
    """
    with contextlib.ExitStack() as stack:
        place = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            die_with_parent()  # else they would outlive a torchrun that is killed
            device = run.get("device", "auto")
            with one_voice(None):
                if device not in ("auto", "cpu", "cuda"):
                    raise UserError(f'{name}: device "{device}" is that of one process; several take auto, cpu or cuda')
                place = stack.enter_context(process_group(device=device))
            if say_end is not None:
                speak_when_ended(place, say_end)
            stack.enter_context(one_voice(place, shared=NotFinite))
        return _train(run, name, place, parallel=parallel, recompute=recompute, report=report, progress=progress)


def _train(run: dict[str, Any], name: str, place: Rank | None, **options: Any) -> TransformerLM | None:
    needed, known = (
        {"model", "train", "seed", "folder", "token_shards"},
        {"tokenizer", "device", "compile", "num_threads"},
    )
    wrong = {"lacks": sorted(needed - run.keys()), "has an unknown": sorted(run.keys() - needed - known)}
    if any(wrong.values()):
        parts = [f"{what} {', '.join(names)}" for what, names in wrong.items() if names]
        raise UserError(f"{name}: {'; it '.join(parts)}")
    if options["recompute"] < 0:
        raise UserError(f"--recompute is a number of layers, or 0 to keep all, got {options['recompute']}")
    device = run.get("device", "auto") if place is None else str(place.device)
    torch.set_num_threads(run.get("num_threads") or torch.get_num_threads())
    if pick_device(device).type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32; elsewhere it is slower, or wrong (Apple's GPUs)
    folders = [Path(folder) for folder in run["token_shards"]]
    tokenizer = Tokenizer.load(Path(run["tokenizer"])) if run.get("tokenizer") else None
    model_config = _config(ModelConfig, run["model"], name)
    if not model_config.vocab_size:
        if tokenizer is None:
            raise UserError(f"{name}: model needs vocab_size, or name the tokenizer whose it is")
        model_config = replace(model_config, vocab_size=tokenizer.vocab_size)
    train_tokens, valid_tokens = concatenate(folders, "train"), concatenate(folders, "valid")
    largest_id = largest_token_id(folders)
    if largest_id >= model_config.vocab_size:
        raise UserError(
            f"{name}: the token shards hold id {largest_id:,}, but the model's vocab_size is"
            f" {model_config.vocab_size:,}; take that of the tokenizer that made them"
        )

    def name_documents(starts: Sequence[int], num_tokens: int) -> Iterator[str]:
        for document in documents_at(folders, "train", starts, num_tokens):
            yield f"{document.url} ({document.id}, {document.warc} at byte {document.offset:,})"

    return train(
        model_config,
        _config(TrainConfig, run["train"], name),
        train_tokens=train_tokens,
        valid_tokens=valid_tokens,
        seed=run["seed"],
        folder=Path(run["folder"]),
        device=device,
        compile_model=run.get("compile", False),
        place=place,
        tokenizer=tokenizer,
        name_documents=name_documents,
        **options,
    )


def _settings(name: str, kind: type) -> str:
    """What a part of the run file may say: each setting's meaning, and the defaults."""
    values = [f"{f.name}={f.default!r}" for f in fields(kind) if f.default is not MISSING]
    needed = [f.name for f in fields(kind) if f.default is MISSING]
    attributes = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:")[2]
    return f'"{name}": needs {", ".join(needed)};\nby default {", ".join(values)}\n{attributes}'


def _config(kind: type, values: dict[str, Any], name: str) -> Any:
    unknown = values.keys() - {field.name for field in fields(kind)}
    if unknown:
        raise UserError(f"{name}: {kind.__name__} has no setting {', '.join(sorted(unknown))}")
    missing = {field.name for field in fields(kind) if field.default is MISSING} - values.keys()
    if missing:
        raise UserError(f"{name}: {kind.__name__} needs {', '.join(sorted(missing))}")
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {error}") from None


if __name__ == "__main__":
    leave(main)
