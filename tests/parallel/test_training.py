"""The training loop in every form: one process's run but for rounding, going on in any other, ending with one error."""

import itertools
import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from cs336.files import UserError
from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.parallel.process_group import run_ranks
from cs336.train.checkpoint import CheckpointWriter, checkpoint_path, checkpoint_paths, read_checkpoint
from cs336.train.loop import NotFinite, TrainConfig, train
from cs336.train.metrics import METRICS_FILE, WALL_CLOCK
from cs336.train.parallel_forms import FORMS, DataParallel
from cs336.train.resume import CHECKPOINTS_FOLDER

# Sizes that neither 2 nor 4 ranks divide, of a model whose ends are tied.
MODEL = ModelConfig(
    context_length=8, d_model=18, num_layers=3, num_heads=3, d_ff=22, vocab_size=21, tied=True, qkv_bias=True
)
CONFIG = TrainConfig(
    batch_size=16,
    micro_batch_size=2,
    num_steps=8,
    learning_rate=1e-2,
    min_learning_rate=1e-3,
    warmup_steps=2,
    eps=1e-4,  # else the sign of what is nearly zero would decide
    max_grad_norm=0.2,  # below the norms met here
    valid_interval=4,
    valid_batches=2,
    checkpoint_interval=4,
    norm_interval=4,
)
IDENTITY = ("model_config", "train", "seed", "data")
TOKENS = np.random.default_rng(0).integers(0, 21, 700).astype(np.uint16)
RTOL, ATOL = 1e-5, 1e-6  # seen on two and four ranks: weights within 1.5e-7, losses within 2.3e-7 of themselves
SOME = TOKENS[:217]  # whose windows fill no whole number of batches


def run(folder, place=None, form="ddp", config=CONFIG, model=MODEL, **options):
    return train(
        model,
        config,
        train_tokens=TOKENS,
        valid_tokens=SOME,
        seed=0,
        folder=Path(folder),
        device="cpu",
        parallel=form,
        place=place,
        **options,
    )


def run_in(form, place, folder, **options):
    """In a form of several processes, or in one, while the other ranks wait."""
    if form in FORMS:
        run(folder, place, form, **options)
    elif place.rank == 0:
        run(folder, **options)
    dist.barrier()


def curve(folder):
    rows = [json.loads(line) for line in (Path(folder) / METRICS_FILE).read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in WALL_CLOCK} for row in rows]


def assert_same_run(folder, reference, *, rtol, atol):
    """Curves, weights and last checkpoints."""
    torch.testing.assert_close(curve(folder), curve(reference), rtol=rtol, atol=atol)
    weights, expected = (load_file(Path(place) / "model.safetensors") for place in (folder, reference))
    torch.testing.assert_close(weights, expected, rtol=rtol, atol=atol)
    states = [read_checkpoint(checkpoint_paths(Path(place) / CHECKPOINTS_FOLDER)[-1]) for place in (folder, reference)]
    for state in states:
        assert list(state) == ["model", "optimizer", "iteration", "finished", "rng", *IDENTITY]
        assert state["model"]["lm_head.weight"].data_ptr() == state["model"]["token_embeddings.weight"].data_ptr()
    assert [states[0][part] for part in IDENTITY] == [states[1][part] for part in IDENTITY]
    for part in ("model", "optimizer"):
        torch.testing.assert_close(states[0][part], states[1][part], rtol=rtol, atol=atol)


def stopped_at_step_4(folder, source):
    """A copy of a run as it was when its first checkpoint had been written."""
    (folder / CHECKPOINTS_FOLDER).mkdir(parents=True)
    first = checkpoint_path(Path(CHECKPOINTS_FOLDER), 4)
    shutil.copy(source / first, folder / first)
    shutil.copy(source / METRICS_FILE, folder / METRICS_FILE)
    return folder


def check_forms(place, root):
    warnings.simplefilter("error")
    assert min(row["grad_norm"] for row in curve(root / "one")) > CONFIG.max_grad_norm
    for form in FORMS:
        for recompute in (0, 2):
            folder = root / f"{form} {recompute}"
            run(folder, place, form, recompute=recompute)
            if place.rank == 0:
                assert_same_run(folder, root / "one", rtol=RTOL, atol=ATOL)
                for written in ("config.json", METRICS_FILE):
                    assert (folder / written).stat().st_size > 0
            dist.barrier()
    # From each form into each: bit for bit in its own, else but for rounding.
    for before, after in itertools.product(("one", *FORMS), repeat=2):
        source = root / (before if before == "one" else f"{before} 0")
        folder = root / f"{before} then {after}"
        if place.rank == 0:
            stopped_at_step_4(folder, source)
        dist.barrier()
        run_in(after, place, folder)
        if place.rank == 0:
            exact = before == after
            assert_same_run(folder, source, rtol=0 if exact else RTOL, atol=0 if exact else ATOL)


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_form_is_one_processs_run_and_goes_on_in_every_other(tmp_path, world_size):
    run(tmp_path / "one")
    run_ranks(check_forms, world_size, tmp_path, start_method="forkserver", timeout_seconds=280)


def check_other_settings(place, root):
    warnings.simplefilter("error")
    untied = replace(MODEL, tied=False, qkv_bias=False)
    for name, config, forms in (
        ("muon", replace(CONFIG, optimizer="muon", micro_batch_size=0, norm_interval=0), ("ddp", "zero1")),
        ("plain", replace(CONFIG, micro_batch_size=0, max_grad_norm=100.0, norm_interval=0), tuple(FORMS)),
    ):
        run_in("one", place, root / name, config=config, model=untied)
        for form in forms:
            run(root / f"{name} {form}", place, form, config=config, model=untied)
            if place.rank == 0:
                ours, theirs = curve(root / f"{name} {form}"), curve(root / name)
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
            dist.barrier()
    low = replace(CONFIG, precision="bfloat16", norm_interval=0)
    run_in("one", place, root / "bfloat16", config=low)
    for form in FORMS:
        run(root / f"bfloat16 {form}", place, form, config=low)
        if place.rank == 0:
            ours, theirs = curve(root / f"bfloat16 {form}"), curve(root / "bfloat16")
            torch.testing.assert_close(ours, theirs, rtol=0.03, atol=0.03)
            assert ours != curve(root / "one")  # it was 16 bits that were computed with
        dist.barrier()
    # Dropout: each rank its own numbers, and the same again after a stop.
    dropping = replace(MODEL, dropout=0.2)
    for form in FORMS:
        whole, parts = root / f"dropout {form}", root / f"dropout parts {form}"
        run(whole, place, form, model=dropping)
        seeds = [None] * place.world_size
        dist.all_gather_object(seeds, torch.initial_seed())
        assert len(set(seeds)) == place.world_size
        if place.rank == 0:
            stopped_at_step_4(parts, whole)
        dist.barrier()
        run(parts, place, form, model=dropping)
        if place.rank == 0:
            assert_same_run(parts, whole, rtol=0, atol=0)


@pytest.mark.slow
def test_other_optimizers_precisions_and_dropout(tmp_path):
    run(tmp_path / "one")
    run_ranks(check_other_settings, 2, tmp_path, start_method="forkserver", timeout_seconds=200)


class Letters:
    """A tokenizer of 20 letters; id 20 ends a text."""

    end_of_text_id = 20

    def encode(self, text):
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, ids):
        return "".join(chr(ord("a") + i) for i in ids if i < 20)


def check_samples_and_clock(place, root):
    """Text is that of one process's model; a run by rank 0's clock ends everywhere at once."""
    config = replace(CONFIG, sample_interval=4, sample_prompts=("abc", "b"), sample_tokens=4, norm_interval=0)
    run_in("one", place, root / "samples", config=config, tokenizer=Letters())
    for form in FORMS:
        run(root / f"samples {form}", place, form, config=config, tokenizer=Letters())
        if place.rank == 0:
            texts = [(root / name / "samples.jsonl").read_text() for name in ("samples", f"samples {form}")]
            assert texts[0] == texts[1] and texts[0].count("\n") == 4
    timed = replace(CONFIG, num_steps=100_000, max_seconds=1.0, schedule_by_clock=True, norm_interval=0)
    seen = []
    run(root / "timed", place, "ddp", config=timed, report=lambda row: seen.append((row["step"], row["learning_rate"])))
    everyones = [None] * place.world_size
    dist.all_gather_object(everyones, seen)
    assert 1 < len(seen) < 100_000 and all(other == seen for other in everyones)


def check_errors(place, root):
    """All ranks end with the error that one process would end in; only the first rank writes."""
    plain = TransformerLM.hidden_states
    forwards = itertools.count()

    def breaks(self, *arguments, **options):
        hidden = plain(self, *arguments, **options)
        broken = place.rank == 1 and self.training and next(forwards) == 4 * 5  # of 4 micro-batches a step
        return hidden * float("nan") if broken else hidden

    TransformerLM.hidden_states = breaks
    for form in ("ddp", "fsdp", "fsdp2"):
        forwards = itertools.count()
        with pytest.raises(NotFinite, match=r"the loss became nan at step 6; the last good checkpoint is .*004\.pt"):
            run(root / f"nan {form}", place, form)
        dist.barrier()
        assert [row["step"] for row in curve(root / f"nan {form}")] == [1, 2, 3, 4, 5]
        assert len(checkpoint_paths(root / f"nan {form}" / CHECKPOINTS_FOLDER)) == 1
    TransformerLM.hidden_states = plain
    for form, options, said in (
        ("fsdp", {"config": replace(CONFIG, optimizer="muon")}, "needs whole matrices"),
        ("fsdp2", {"config": replace(CONFIG, optimizer="muon")}, "needs whole matrices"),
        ("fsdp", {"compile_model": True}, "does not compile"),
        ("fsdp3", {}, "--parallel is one of ddp, zero1, fsdp, fsdp2, got 'fsdp3'"),
        ("ddp", {"config": replace(CONFIG, batch_size=9, micro_batch_size=0)}, "batch_size 9 does not divide by 2"),
        ("ddp", {"config": replace(CONFIG, batch_size=18, micro_batch_size=6)}, "does not divide the 9 sequences"),
    ):
        with pytest.raises(UserError, match=said):
            run(root / "none", place, form, **options)
    assert not (root / "none").exists()


def check_only_the_first_rank_writes(place, root):
    """A checkpoint is whole on rank 0, and nothing on the others."""
    written = []
    plain = CheckpointWriter.write
    CheckpointWriter.write = lambda self, state, iteration: written.append(iteration) or plain(self, state, iteration)
    for form in FORMS:
        run(root / f"written {form}", place, form)
    CheckpointWriter.write = plain
    assert written == ([] if place.rank else [4, 8] * len(FORMS))


def all_checks(place, root):
    check_samples_and_clock(place, root)
    check_errors(place, root)
    check_only_the_first_rank_writes(place, root)


@pytest.mark.slow
def test_samples_the_clock_errors_and_who_writes(tmp_path):
    run_ranks(all_checks, 2, tmp_path, start_method="forkserver", timeout_seconds=200)


def check_compiled(place, root):
    """Compiled block by block: the same run, and the last block's gradients are there before the first's."""
    early = []
    plain = DataParallel._share

    def share(self, compile_model):
        plain(self, compile_model)
        first, last = (layer.ffn.w1.weight for layer in (self.model.layers[0], self.model.layers[-1]))
        last.register_post_accumulate_grad_hook(lambda _: early.append(first.grad is None))

    DataParallel._share = share
    config = replace(CONFIG, micro_batch_size=0)
    run_in("one", place, root / "one", config=config)
    for form, recompute in (("ddp", 0), ("zero1", 2), ("fsdp2", 0), ("fsdp2", 2)):
        folder = root / f"{form} {recompute}"
        run(folder, place, form, config=config, compile_model=True, recompute=recompute)
        if place.rank == 0:
            assert_same_run(folder, root / "one", rtol=1e-4, atol=1e-5)
        dist.barrier()
    assert early == [True] * 2 * CONFIG.num_steps


@pytest.mark.slow
def test_compiled_blocks_are_the_same_run_and_let_gradients_leave_early(tmp_path):
    run_ranks(check_compiled, 2, tmp_path, start_method="forkserver", timeout_seconds=280)
