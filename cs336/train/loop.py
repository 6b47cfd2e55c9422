"""The training loop: a pure function of its run description, resumable at any step."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cs336.files import UserError
from cs336.hardware import pick_device
from cs336.model.accounting import training_flops
from cs336.model.transformer import ModelConfig, TransformerLM, save_model
from cs336.progress import Progress, silent
from cs336.tokens.batches import Batches, every_token_once
from cs336.train.checkpoint import CheckpointWriter, checkpoint_paths, rng_state
from cs336.train.forms import Form
from cs336.train.metrics import METRICS_FILE, Clock, MetricsLog, Report, is_finite
from cs336.train.parallel_forms import make_form
from cs336.train.resume import CHECKPOINTS_FOLDER, mark_of, resume
from cs336.train.samples import SAMPLES_FILE, write_samples
from cs336.train.schedule import SCHEDULES, lr_cosine, lr_wsd

if TYPE_CHECKING:
    from cs336.generate.engine import TextCodec
    from cs336.parallel.process_group import Rank

OPTIMIZERS = ("adamw", "muon")

# The share of a GPU's free memory that the training tokens may take; larger arrays stay on the host.
_TOKENS_SHARE = 0.25
_NAMED_DOCUMENTS = 8  # of a batch that broke the run, in the line that says so

NameDocuments = Callable[[Sequence[int], int], Iterator[str]]


class NotFinite(UserError):
    """A loss, gradient or weight stopped being a number: the run has diverged.

    Attributes:
        event: what became what at which step, without the advice.
    """

    def __init__(self, message: str, event: str) -> None:
        super().__init__(message)
        self.event = event


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; tokens seen = batch_size * context_length * num_steps.

    Attributes:
        batch_size: sequences a step.
        num_steps: after so many the run ends, if `max_seconds` has not ended it before.
        learning_rate: the highest, reached after the warm-up.
        min_learning_rate: at the last step.
        warmup_steps: linear warm-up from 0.
        schedule: "cosine", or "wsd": constant, then a straight line down.
        decay_fraction: of "wsd", the share of the run in which the rate falls.
        schedule_by_clock: after the warm-up the schedule runs over the share of `max_seconds` used, not
            of the steps done, so that it ends with the time.
        max_seconds: of training time, which begins with the first step and stops for nothing but the
            last evaluation; no step begins that would end later. 0 for no limit.
        optimizer: "adamw", or "muon" for the matrices of the blocks and AdamW for the rest.
        muon_rate_ratio: learning rate of Muon's matrices over that of AdamW's parameters.
        muon_momentum: of Muon.
        betas, eps, weight_decay: of AdamW.
        decay_all: decay acts on vectors (the norms' gains) too, not on matrices only.
        max_grad_norm: global l2 norm above which gradients are scaled down.
        z_loss: weight of the penalty on large softmax denominators, see `linear_cross_entropy`.
        micro_batch_size: sequences at once; the gradients of a batch's parts are added up. It divides
            batch_size; 0 takes the batch as a whole.
        precision: "float32", or "bfloat16" for matrix products under autocast.
        valid_in_float32: validation losses are computed outside autocast (on NVIDIA GPUs with matrix products in TF32),
            as assignment 4's script does; else in `precision`.
        valid_interval: steps between two validation losses.
        valid_batches: batches in each of those, always the same ones; the last step's validation loss
            is that of all held-out tokens, each predicted once.
        checkpoint_interval: steps between two checkpoints.
        keep_checkpoints: how many of the last ones stay.
        sample_interval: steps between two rounds of text written by the model; 0 for none.
        sample_prompts: what each round continues.
        sample_tokens: the most tokens of each.
        sample_temperature: 0 takes the most probable token.
        norm_interval: steps between two rows with norms of weights, gradients and activations; 0 for none.
    """

    batch_size: int
    num_steps: int
    learning_rate: float
    min_learning_rate: float
    warmup_steps: int
    schedule: str = "cosine"
    decay_fraction: float = 0.2  # 10 to 20 % serve as well as a cosine: Hägele et al. 2024, arXiv:2405.18392
    schedule_by_clock: bool = False
    max_seconds: float = 0.0
    optimizer: str = "adamw"
    muon_rate_ratio: float = 1.0
    muon_momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)  # usual for language models, as in the handout
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_all: bool = False
    max_grad_norm: float = 1.0
    z_loss: float = 0.0
    micro_batch_size: int = 0
    precision: str = "float32"
    valid_in_float32: bool = False
    valid_interval: int = 100
    valid_batches: int = 8
    checkpoint_interval: int = 200
    keep_checkpoints: int = 2
    sample_interval: int = 0
    sample_prompts: tuple[str, ...] = ("",)
    sample_tokens: int = 64
    sample_temperature: float = 0.8
    norm_interval: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("precision", ("float32", "bfloat16")),
            ("schedule", SCHEDULES),
            ("optimizer", OPTIMIZERS),
        ):
            if getattr(self, name) not in choices:
                named = " or ".join(f'"{choice}"' for choice in choices)
                raise ValueError(f"{name} is {named}, got {getattr(self, name)!r}")
        if self.num_steps < 1 or self.batch_size < 1:
            raise ValueError(f"need at least one step and one sequence, got {self.num_steps} and {self.batch_size}")
        for name in ("valid_interval", "valid_batches", "checkpoint_interval", "keep_checkpoints", "sample_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_seconds", "micro_batch_size", "z_loss", "sample_interval", "norm_interval", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size must divide batch_size, got {self.micro_batch_size} for {self.batch_size}"
            )
        if not 0 < self.decay_fraction <= 1:
            raise ValueError(f"decay_fraction lies in (0, 1], got {self.decay_fraction}")
        if self.schedule_by_clock and not self.max_seconds:
            raise ValueError("schedule_by_clock needs max_seconds, the time that the schedule runs over")

    def learning_rate_at(self, t: int, seconds: float) -> float:
        """The learning rate of step t, counted from 1, that begins after `seconds` of training."""
        last = float(self.num_steps)
        if self.schedule_by_clock:  # the steps that the whole time has room for, at the pace so far
            used = min(1.0, seconds / self.max_seconds)
            last = min(last, t / used if used else math.inf)
        if self.schedule == "cosine":
            return lr_cosine(t, self.learning_rate, self.min_learning_rate, self.warmup_steps, last)
        decay_start = max(float(self.warmup_steps), last * (1 - self.decay_fraction))
        return lr_wsd(t, self.learning_rate, self.min_learning_rate, self.warmup_steps, decay_start, last)


def train(
    model_config: ModelConfig,
    config: TrainConfig,
    *,
    train_tokens: Any,
    valid_tokens: Any,
    seed: int,
    folder: Path,
    device: str = "auto",
    compile_model: bool = False,
    parallel: str = "ddp",
    place: Rank | None = None,
    recompute: int = 0,
    tokenizer: TextCodec | None = None,
    name_documents: NameDocuments | None = None,
    report: Report = lambda row: None,
    progress: Progress = silent,
) -> TransformerLM | None:
    """Train a model; `folder` gets `metrics.jsonl`, `checkpoints/`, `config.json`, `model.safetensors`.

    The batch of a step is a function of seed and step alone, and a checkpoint holds the random streams,
    so a run that was stopped and goes on from its checkpoint ends with the weights of one that was not.

    Of several processes, all of which call this, rank r takes the r-th equal slice of every batch, and rank 0 alone
    writes. Their run is the one process's but for rounding (and the random numbers of dropout): see `forms.py`.

    Args:
        train_tokens, valid_tokens: one-dimensional arrays of token ids.
        folder: may hold the checkpoints of an interrupted run with the same settings.
        device: "auto" takes a GPU where there is one.
        compile_model: compile model and loss; slower to start, faster to run.
        parallel: how several processes share the run, one of `FORMS`.
        place: this process's among several, which are in a process group.
        recompute: layers in each segment that the backward pass runs again to save memory; 0 keeps all.
        tokenizer: for `config.sample_interval`; samples go to `samples.jsonl`.
        name_documents: (starts of a batch's stretches, their length) -> the documents in it, for the
            error that a loss that is not finite ends in.
        report: called with every row of metrics.

    Returns:
        The trained model; of a form that shards it, on rank 0 alone.

    Raises:
        UserError: too few tokens, a checkpoint of another run, or settings that do not go with the form.
        NotFinite: a loss, gradient or weight is not finite: nothing of that step is saved. On all ranks alike.
    """
    if len(train_tokens) <= model_config.context_length or len(valid_tokens) < 2:
        raise UserError(
            f"{len(train_tokens)} training and {len(valid_tokens)} held-out tokens are too few for a context of"
            f" {model_config.context_length}; give more text"
        )
    if config.sample_interval and tokenizer is None:
        raise UserError("sample_interval needs a tokenizer to write text with; set it to 0, or name the tokenizer")
    torch_device = pick_device(device)
    compute_deterministically(torch_device)
    torch.manual_seed(seed)
    model = _new_model(model_config, torch_device).recompute_in_segments(recompute)
    form = make_form(parallel, model, config, place, compile_model=compile_model)
    batches = _training_batches(train_tokens, model_config.context_length, seed, form)
    identity = {
        "model_config": asdict(model_config),
        "train": _plain(asdict(config)),
        "seed": seed,
        "data": {"train_tokens": mark_of(train_tokens), "valid_tokens": mark_of(valid_tokens)},
    }
    start, seconds_before, finished = resume(form, folder, identity)
    clock = Clock(seconds_before)
    context_length = model_config.context_length
    tokens_per_step = config.batch_size * context_length

    def check(row: dict[str, Any]) -> None:
        if not is_finite(row):
            loss, norm = row["train_loss"], row["grad_norm"]
            what = f"loss became {loss}" if not math.isfinite(loss) else f"gradient's norm became {norm}"
            writer.settle()
            raise _not_finite(what, row["step"], folder, batches, name_documents, context_length)

    def save(done: int, over: bool) -> None:
        writer.settle()
        if not math.isfinite(math.hypot(*form.weight_norms().values())):
            raise _not_finite("weights became infinite", done, folder, batches, name_documents, context_length)
        state = form.state()
        if state is not None:
            extras = {"iteration": done, "finished": over, "rng": rng_state(torch_device)}
            writer.write(state | extras | identity, done)

    checkpoint_seconds = 0.0  # of the last one

    def is_over(done: int) -> bool:
        """Whether the run ends here: its steps are done, or one more would end too late."""
        if done == config.num_steps or not config.max_seconds:
            return done == config.num_steps
        saving = checkpoint_seconds if done % config.checkpoint_interval == 0 else 0.0
        return form.agreed(log.seconds_of_next_step() + saving) > config.max_seconds

    def validate(max_batches: int | None) -> None:
        log.settle()
        watched = progress if max_batches is None else silent  # all of the held-out text takes its time
        loss, num_tokens = evaluate(form, valid_tokens, max_batches=max_batches, progress=watched)
        log.add(valid_loss=loss, num_valid_tokens=num_tokens)

    def sample(done: int) -> None:
        log.settle()
        whole = form.whole_model()
        if tokenizer is not None and whole is not None and form.rank == 0:
            with form.eager():
                write_samples(folder / SAMPLES_FILE, whole, tokenizer, config, done)

    log = MetricsLog(
        folder / METRICS_FILE if form.rank == 0 else None,
        clock=clock,
        device=torch_device,
        precision=config.precision,
        tokens_per_step=tokens_per_step,
        flops_per_token=training_flops(model_config, context_length) / context_length / form.num_ranks,  # on a device
        check=check,
        report=report,
    )
    steps = range(start, start if finished else config.num_steps)
    label = f"train, from step {start:,}" if start else "train"
    with (
        contextlib.closing(log),
        CheckpointWriter(folder / CHECKPOINTS_FOLDER, keep=config.keep_checkpoints) as writer,
        contextlib.closing(batches.in_order(steps)) as data,
    ):
        for step, (inputs, targets) in zip(progress(steps, unit="steps", label=label), data, strict=False):
            writer.raise_failure()
            done = step + 1
            seconds = form.agreed(clock.seconds()) if config.schedule_by_clock else 0.0
            learning_rate = config.learning_rate_at(done, seconds)
            for group in form.optimizer.param_groups:
                group["lr"] = learning_rate * group["rate_ratio"]
            if form.num_ranks > 1:  # each rank draws its own numbers in each step, so that no checkpoint need hold them
                torch.manual_seed(_mixed(seed, step, form.rank))
            loss = _accumulate_gradients(form, inputs, targets)
            norms = {}
            if config.norm_interval and done % config.norm_interval == 0:
                norms["gradient_norms"] = form.gradient_norms()
                norms["activation_norms"] = form.activation_norms(inputs)
                norms["weight_norms"] = form.weight_norms()
            grad_norm = form.clip_gradients(config.max_grad_norm)
            form.optimizer.step()
            row = {"step": done, "num_tokens": done * tokens_per_step, "learning_rate": learning_rate} | norms
            log.begin(row, torch.stack((loss.float(), grad_norm.float())))

            over = is_over(done)
            if not over and done % config.valid_interval == 0:
                validate(config.valid_batches)
            sampled = config.sample_interval > 0 and done % config.sample_interval == 0
            if sampled:
                sample(done)
            over = over or is_over(done)  # validating and writing took time, too
            if over:
                validate(None)
                if config.sample_interval and not sampled:
                    sample(done)
            log.end()
            if over or done % config.checkpoint_interval == 0:
                log.flush()
                before = clock.seconds()
                save(done, over)
                checkpoint_seconds = clock.seconds() - before
            if over and done < config.num_steps:
                break
    trained = form.whole_model()
    if trained is not None and form.rank == 0:
        save_model(trained, folder)
    return None if trained is None else trained.eval()


def training_step(
    model_config: ModelConfig, config: TrainConfig, device: torch.device, *, compile_model: bool = False
) -> tuple[TransformerLM, Callable[[Tensor, Tensor], Tensor]]:
    """A new model and the loop's step on it, to look at its memory or time.

    Returns:
        The model, and a function of a batch's inputs and targets that trains it and returns the loss.
    """
    compute_deterministically(device)
    form = Form(_new_model(model_config, device), config, compile_model=compile_model)

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        loss = _accumulate_gradients(form, inputs, targets)
        form.clip_gradients(config.max_grad_norm)
        form.optimizer.step()
        return loss

    return form.model, step


def _new_model(model_config: ModelConfig, device: torch.device) -> TransformerLM:
    model = TransformerLM(model_config).to(device).train()
    if device.type == "cuda":  # the reference holds all scores, in fp32: slow, and most of the memory
        model.use_attention_kernel("fused")
    return model


def evaluate(
    form: Form, tokens: Any, *, max_batches: int | None = None, progress: Progress = silent
) -> tuple[float, int]:
    """Mean loss in nats over held-out text, and the number of tokens predicted.

    The ranks take turns at its batches, so that the mean is that of one process.

    Args:
        max_batches: None for a full pass in which each token but the first is predicted once.
    """
    size = form.sequences_at_once
    nats, counts = [], []
    batches = every_token_once(
        tokens,
        batch_size=size,
        context_length=form.model.config.context_length,
        device=form.device,
        max_batches=max_batches and max_batches * (form.config.batch_size // size),
        share=(form.rank, form.num_ranks),
    )
    with form.evaluating():
        for batch in progress(batches, unit="batches", label="score held-out text"):
            losses = form.token_losses(batch.inputs, batch.targets)
            nats.append(torch.where(batch.counted, losses, 0.0).sum())
            counts.append(batch.counted.sum())
    num_tokens = int(form.gathered(torch.stack(counts)).sum())
    return math.fsum(form.gathered(torch.stack(nats)).tolist()) / num_tokens, num_tokens


def compute_deterministically(device: torch.device) -> None:
    """Make equal runs equal to the last bit.

    Otherwise several threads, or a GPU's blocks, add up the gradients of embedding and attention in any
    order, and equal runs drift apart. Only asked for as an error does PyTorch take the deterministic form
    of its fused attention; asked for as a warning, it warns.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by cuBLAS; read at its first product
    torch.use_deterministic_algorithms(True, warn_only=device.type not in ("cpu", "cuda"))
    # Filling memory that is about to be written is for finding bugs, and takes time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _accumulate_gradients(form: Form, inputs: Tensor, targets: Tensor) -> Tensor:
    """Leave the gradient of the whole batch's mean loss in the parameters; returns its cross-entropy."""
    form.zero_grad()
    size = form.sequences_at_once
    micro_batches = list(zip(inputs.split(size), targets.split(size), strict=True))
    parts = []
    for number, (some_inputs, some_targets) in enumerate(micro_batches, start=1):
        with form.sending(number == len(micro_batches)):
            loss = form.loss_of(some_inputs, some_targets)
            (loss.total * (size / len(inputs))).backward()
        parts.append(loss.cross_entropy.detach())
    form.finish_gradients()
    return form.mean(torch.stack(parts).mean())


def _training_batches(tokens: Any, context_length: int, seed: int, form: Form) -> Batches:
    on_gpu = form.device.type == "cuda"
    fits = on_gpu and 2 * len(tokens) < _TOKENS_SHARE * torch.cuda.mem_get_info(form.device)[0]
    return Batches(
        tokens,
        batch_size=form.config.batch_size,
        context_length=context_length,
        seed=seed,
        device=form.device,
        keep_on_device=fits,
        prefetch=on_gpu,
        share=(form.rank, form.num_ranks),
    )


def _mixed(*numbers: int) -> int:
    """A seed of its own for each tuple of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _not_finite(
    what: str,
    step: int,
    folder: Path,
    batches: Batches,
    name_documents: NameDocuments | None,
    context_length: int,
) -> NotFinite:
    """One line for a run that cannot go on: the step, the text it saw, and the checkpoint before it."""
    line = f"{folder / METRICS_FILE}: the {what} at step {step}"
    if name_documents is not None:
        names = list(name_documents(batches.starts(step - 1).tolist(), context_length + 1))
        more = f" and {len(names) - _NAMED_DOCUMENTS} more" if len(names) > _NAMED_DOCUMENTS else ""
        line += f", on {', '.join(names[:_NAMED_DOCUMENTS])}{more}"
    good = checkpoint_paths(folder / CHECKPOINTS_FOLDER)
    line += f"; the last good checkpoint is {good[-1]}" if good else "; there is no checkpoint yet"
    return NotFinite(f"{line}; lower learning_rate, or look at that text", f"the {what} at step {step}")


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them, so that they compare equal wherever they were read from."""
    return json.loads(json.dumps(values))
