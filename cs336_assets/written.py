"""The first handout's written and accounting questions, answered by what is computed for them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

from cs336.files import read_json, replacing, write_json
from cs336.model.accounting import (
    ADAMW_FLOPS_PER_PARAMETER,
    GPT2_SHAPES,
    count_parameters,
    flops_by_part,
    forward_flops,
    matrix_products,
    optimizer_flops,
    training_days,
    training_flops,
    training_memory,
)
from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokenizer.unicode import unicode_answers as answer_unicode
from cs336.tokens.shards import SplitConfig
from cs336.tokens.texts import read_texts
from cs336.train.loop import TrainConfig
from cs336.train.optimizer import sgd_exercise as run_sgd
from cs336_assets import plots
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.crawl import page_table

ANSWERS_FILE = "answers.json"
ACCOUNTING_FILE = "accounting.json"
EXERCISE_FILE = "exercise.json"
SAMPLE_CHARACTERS = 100_000
LONG_CONTEXT = 16_384  # the handout's
AVAILABLE_BYTES = 80 * 10**9  # of an A100 or H100, in the handout's decimal gigabytes
SGD_RATES = (1.0, 10.0, 100.0, 1_000.0)


# ---- Unicode


@asset(group="written", kinds={"markdown"}, owner="team:tokens")
def unicode_answers(step: Step, deduplicated_text: list[Path], split: SplitConfig) -> Metadata:
    """What NUL is, why UTF-8, what byte-by-byte decoding breaks: each sentence beside the Python that shows it.

    The expressions are evaluated when this is made; the sizes of the encodings are those of the first
    100,000 characters of this preset's training text.
    """
    characters = itertools.chain.from_iterable(read_texts(deduplicated_text, split, held_out=False))
    answers = answer_unicode("".join(itertools.islice(characters, SAMPLE_CHARACTERS)))
    write_json(step.folder / ANSWERS_FILE, [answer._asdict() for answer in answers])
    page = "\n\n".join(f"**{answer.question}** {answer.sentences}\n\n{_code(answer.shown)}" for answer in answers)
    _write_page(step, "unicode.md", page)
    return {"num_answers": len(answers), "answers": {"markdown": page}}


@check(asset="unicode_answers")
def claims_hold(unicode_answers: Path) -> tuple[bool, Metadata]:
    """The statement under each answer evaluated to True."""
    answers = read_json(unicode_answers / ANSWERS_FILE)
    failed = [answer["claim"] for answer in answers if not answer["holds"]]
    return len(answers) == 6 and not failed, {"num_answers": len(answers), "failed": failed}


# ---- parameters, FLOPs, bytes


@asset(group="written", kinds={"pytorch"}, owner="team:models")
def model_accounting(step: Step, tokenizer: Path, model: ModelConfig, train: TrainConfig) -> Metadata:
    """Parameters, FLOPs and training memory in closed form: GPT-2's four shapes and this preset's model.

    A product of an m x n and an n x p matrix costs 2mnp; a backward pass costs two forward passes;
    memory is that of training in fp32 with AdamW. The handout's questions on GPT-2 XL are answered:
    matrix by matrix, at a context of 16,384, the largest batch in 80 GB, and the days of its training.
    """
    ours = dataclasses.replace(model, vocab_size=Tokenizer.load(tokenizer).vocab_size)
    xl = GPT2_SHAPES["xl"]
    shapes = {f"GPT-2 {name}": shape for name, shape in GPT2_SHAPES.items()}
    shapes |= {
        "GPT-2 xl, d_ff 4,288": dataclasses.replace(xl, d_ff=4_288),  # the handout of 2026
        f"GPT-2 xl, T {LONG_CONTEXT:,}": dataclasses.replace(xl, context_length=LONG_CONTEXT),
        step.preset: ours,
    }
    accounts = {name: _account(shape) for name, shape in shapes.items()}
    num_tokens = train.batch_size * train.num_steps * ours.context_length
    answers = {
        "xl_training_days": training_days(xl),
        "long_context_factor": forward_flops(xl, LONG_CONTEXT) / forward_flops(xl),
        "training_tokens": num_tokens,
        "training_flops": training_flops(ours, num_tokens) + train.num_steps * optimizer_flops(ours),
    }
    write_json(step.folder / ACCOUNTING_FILE, {"shapes": accounts, "answers": answers})
    plots.stacked_shares({name: account["shares"] for name, account in accounts.items()}, step.folder / "shares.png")
    page = _accounting_page(accounts, answers, step.preset, ours)
    _write_page(step, "accounting.md", page)
    return {
        "num_parameters": accounts[step.preset]["num_parameters"],
        "training_flops": float(answers["training_flops"]),
        "shares": {"image": "shares.png"},
        "accounting": {"markdown": page},
    }


@check(asset="model_accounting")
def closed_form_counts_the_built_model(
    model_accounting: Path, tokenizer: Path, model: ModelConfig
) -> tuple[bool, Metadata]:
    """The preset's model, built without memory for its weights, has as many parameters as the closed form says."""
    shape = dataclasses.replace(model, vocab_size=Tokenizer.load(tokenizer).vocab_size)
    built = sum(parameter.numel() for parameter in TransformerLM(shape, device="meta").parameters())
    preset = model_accounting.parent.name
    said = read_json(model_accounting / ACCOUNTING_FILE)["shapes"][preset]["num_parameters"]
    return built == said, {"built": built, "closed_form": said}


# ---- SGD


@asset(group="written", kinds={"pytorch"}, owner="team:models")
def sgd_exercise(step: Step, seed: int) -> Metadata:
    """The warm-up: ten steps of SGD on the mean of 100 squares at rates 1, 10, 100 and 1,000.

    At step t the weight is multiplied by 1 - lr / (50 sqrt(t + 1)): a rate lets the loss decay as long as
    that is between -1 and 1.
    """
    losses = {rate: run_sgd(rate, seed=seed) for rate in SGD_RATES}
    write_json(step.folder / EXERCISE_FILE, {f"{rate:g}": values for rate, values in losses.items()})
    plots.losses_by_rate(losses, step.folder / "losses.png")
    steps = range(len(losses[SGD_RATES[0]]))
    rows = [[f"{rate:g}", *(f"{values[t]:.3g}" for t in steps), _verdict(values)] for rate, values in losses.items()]
    page = page_table(["lr", *(f"t = {t}" for t in steps), "so it"], rows)
    _write_page(step, "sgd.md", page)
    return {"losses": {"image": "losses.png"}, "exercise": {"markdown": page}}


@check(asset="sgd_exercise")
def losses_follow_the_closed_form(sgd_exercise: Path) -> tuple[bool, Metadata]:
    """Every loss is the one before it times (1 - lr / (50 sqrt(t + 1)))², to one part in a thousand of the larger."""
    worst = 0.0
    for rate, losses in read_json(sgd_exercise / EXERCISE_FILE).items():
        for t, (before, after) in enumerate(itertools.pairwise(losses)):
            expected = before * (1 - float(rate) / (50 * math.sqrt(t + 1))) ** 2
            worst = max(worst, abs(after - expected) / max(before, after, 1e-12))
    return worst <= 1e-3, {"largest_relative_difference": worst}


def _verdict(losses: list[float]) -> str:
    if losses[-1] > losses[0]:
        return f"diverges: {losses[-1] / losses[0]:.2g} times the first loss"
    return f"decays to {losses[-1] / losses[0]:.2g} of the first loss"


# ---- pages


def _account(shape: ModelConfig) -> dict[str, Any]:
    """The figures of one shape; FLOPs of one context, memory of training in fp32."""
    parts, memory, flops = flops_by_part(shape), training_memory(shape), forward_flops(shape)
    return {
        "num_parameters": count_parameters(shape).total,
        "parameters": dataclasses.asdict(count_parameters(shape)),
        "context_length": shape.context_length,
        "forward_flops": flops,
        "shares": {part: value / flops for part, value in parts.items()},
        "optimizer_flops": optimizer_flops(shape),
        "memory": dataclasses.asdict(memory),
        "fixed_bytes": memory.fixed,
        "largest_batch": memory.largest_batch(AVAILABLE_BYTES),
    }


def _accounting_page(
    accounts: dict[str, dict[str, Any]], answers: dict[str, float], preset: str, ours: ModelConfig
) -> str:
    xl, long = accounts["GPT-2 xl"], accounts[f"GPT-2 xl, T {LONG_CONTEXT:,}"]
    dominant = max(xl["shares"], key=xl["shares"].get)
    return "\n\n".join(
        [
            "**Parameters** `2Vd + L(4d² + 3·d·d_ff + 2d) + d`, **forward FLOPs** of a context"
            " `L(8Td² + 4T²d + 6T·d·d_ff) + 2TdV`, each product of m x n and n x p counted as 2mnp.",
            _shapes_table(accounts),
            f"Of GPT-2 XL's {xl['forward_flops'] / 1e12:.2f} TFLOP the {dominant} takes {xl['shares'][dominant]:.0%}."
            " The larger the model, the smaller the share of the head and the larger that of projections and"
            f" feed-forward. At a context of {LONG_CONTEXT:,} a forward pass costs"
            f" {long['forward_flops'] / 1e12:.1f} TFLOP, {answers['long_context_factor']:.0f} times as much for 16"
            f" times the tokens: attention scores grow with T² and take {long['shares']['scores']:.0%}.",
            "**Matrix products of GPT-2 XL**",
            _products_table(GPT2_SHAPES["xl"]),
            f"**Matrix products of `{preset}`**",
            _products_table(ours),
            "**Memory of training in fp32 with AdamW** (d_ff = 4d), in numbers of 4 bytes: parameters"
            " `P = 2Vd + L(16d² + 2d) + d`, gradients `P`, optimizer state `2P`, activations"
            " `B·[L(16Td + 2hT²) + Td + 2TV]`.",
            _memory_table(accounts),
            f"**Time.** An optimizer step costs {ADAMW_FLOPS_PER_PARAMETER} FLOPs a parameter:"
            f" {xl['optimizer_flops'] / 1e9:.1f} GFLOP for GPT-2 XL, nothing beside the passes. 400,000 steps of 1,024"
            " sequences on one A100 (19.5 TFLOP/s in fp32, half of it used) take"
            f" {answers['xl_training_days']:,.0f} days. This preset's run over {answers['training_tokens']:,} tokens"
            f" costs {answers['training_flops']:.3g} FLOP.",
        ]
    )


def _shapes_table(accounts: dict[str, dict[str, Any]]) -> str:
    parts = list(next(iter(accounts.values()))["shares"])
    rows = [
        [
            name,
            account["num_parameters"],
            f"{4 * account['num_parameters'] / 1e9:.3g}",
            account["context_length"],
            f"{account['forward_flops'] / 1e12:.4g}",
            *(f"{account['shares'][part]:.1%}" for part in parts),
        ]
        for name, account in accounts.items()
    ]
    return page_table(["model", "parameters", "GB in fp32", "context", "forward TFLOP", *parts], rows)


def _products_table(shape: ModelConfig) -> str:
    total = forward_flops(shape)
    rows = [
        [
            each.name,
            f"{each.m:,} x {each.n:,} x {each.p:,}",
            each.count,
            f"{each.flops:.3e}",
            f"{each.flops / total:.1%}",
        ]
        for each in matrix_products(shape)
    ]
    return page_table(
        ["product", "m x n x p", "times", "FLOPs", "share"], [*rows, ["all", "", "", f"{total:.3e}", "100%"]]
    )


def _memory_table(accounts: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            name,
            *(f"{account['memory'][part] / 1e9:.3g}" for part in ("parameters", "gradients", "optimizer_state")),
            f"{account['memory']['activations'] / 1e9:.4g} GB·B + {account['fixed_bytes'] / 1e9:.4g} GB",
            account["largest_batch"],
        ]
        for name, account in accounts.items()
    ]
    header = ["model", "parameters, GB", "gradients, GB", "optimizer state, GB", "all, a·B + b"]
    return page_table([*header, f"largest B in {AVAILABLE_BYTES / 1e9:.0f} GB"], rows)


def _code(shown: list[tuple[str, str]]) -> str:
    lines = [line for expression, result in shown for line in (f">>> {expression}", result)]
    return "```python\n" + "\n".join(lines) + "\n```"


def _write_page(step: Step, name: str, page: str) -> None:
    with replacing(step.folder / name, "w") as file:
        file.write(page + "\n")
