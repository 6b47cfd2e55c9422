"""The contest of 2026: one whole training step of an 8B model on two GPUs, by the rules of `do_bench`.

  NCCL_NVLS_ENABLE=0 python -m benchmarks full_step                            as the rules say: rep 30 s, warm-up 10 s
  python -m benchmarks full_step --fp32-masters                                the second row: weights, moments in fp32
  python -m benchmarks full_step --layers 4 --context-length 4096 --rep 2000   less of everything
  python -m benchmarks full_step --device cpu --tiny --check                   equal to the plain model?

Rows are appended to results/full_step.jsonl; the tables have all of them, machine by machine, each by its name:
ranked, fp32 masters, or other. The second row nearly fills GPUs of 80 GB:
PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True spares it what fragments take. `--check` times nothing: it trains the
sharded and the plain model side by side, and its row, which is marked as a check, has the largest differences; give it
few layers and a short context.
"""

from __future__ import annotations

import argparse
import dataclasses

from benchmarks.rank_studies import TINY, add_common_arguments, finish, latest_by_machine, open_rows, say
from cs336.model.attention import KERNELS
from cs336.model.sizes import SIZES
from cs336.profiling import full_step, full_step_check
from cs336.profiling.parallel_config import FullStepConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the contest."""
    rules = FullStepConfig()
    add_common_arguments(parser, warmup=rules.warmup_ms, timed_by="ms")
    parser.set_defaults(timeout=rules.timeout_seconds)
    parser.add_argument("--size", choices=list(SIZES), default="8b")
    parser.add_argument("--layers", type=int, help="fewer than the size has")
    parser.add_argument("--context-length", type=int, help="tokens of a sequence")
    parser.add_argument("--sequences", type=int, default=rules.num_sequences, help="of the whole batch (default 2)")
    parser.add_argument("--processes", type=int, default=rules.world_size)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default=rules.dtype)
    parser.add_argument(
        "--fp32-masters", action="store_true", help="slices, gradients and moments in fp32, all else as is"
    )
    parser.add_argument("--recompute", type=int, default=rules.layers_per_segment, metavar="LAYERS")
    parser.add_argument("--chunk-tokens", type=int, default=rules.chunk_tokens, help="whose logits are held at once")
    parser.add_argument(
        "--attention", choices=list(KERNELS), help=f"kernel (default {rules.attention}; on a CPU fused)"
    )
    parser.add_argument("--keep-attention", action="store_true", help="keep its outputs, and do not run it again")
    parser.add_argument(
        "--eager", action="store_true", help="norms, gates, loss, AdamW by plain PyTorch, not our kernels"
    )
    parser.add_argument("--compile", action="store_true", help="norms and rotations by torch.compile")
    parser.add_argument("--rep", type=float, default=rules.rep_ms, help="ms of timed steps (default %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a model of two small layers, for a dry run")
    parser.add_argument("--check", action="store_true", help="compare with the plain model instead of timing")


def instead_of_cases(options: argparse.Namespace) -> int:
    """Measure or compare."""
    model = TINY if options.tiny else SIZES[options.size]
    changes = {"num_layers": options.layers, "context_length": options.context_length}
    on_gpu = options.device == "cuda"
    config = FullStepConfig(
        device=options.device,
        model=dataclasses.replace(model, **{name: value for name, value in changes.items() if value}),
        world_size=options.processes,
        num_sequences=options.sequences,
        dtype=options.dtype,
        fp32_masters=options.fp32_masters,
        layers_per_segment=options.recompute,
        chunk_tokens=options.chunk_tokens,
        attention=options.attention or (FullStepConfig.attention if on_gpu else "fused"),
        keep_attention=options.keep_attention,
        fused=on_gpu and not options.eager,
        compiled=options.compile,
        warmup_ms=options.warmup,
        rep_ms=options.rep,
        timeout_seconds=options.timeout,
    )
    rows = open_rows("full_step", options)
    measure = full_step_check.measure_check if options.check else full_step.measure_full_step
    row = measure(config, rows, say)
    parts: list[str] = []
    for machine, known in latest_by_machine(rows.path).items():
        parts += [f"**{machine}**", full_step.page(known), full_step_check.page(known)]
    return finish("full_step", options, [row], "\n\n".join(part for part in parts if part), {})
