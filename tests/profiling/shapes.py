"""A model of two small layers and the settings of a dry run."""

from cs336.model.transformer import ModelConfig
from cs336.profiling.parallel_config import FullStepConfig, ParallelConfig

TINY = ModelConfig(context_length=16, d_model=32, num_layers=2, num_heads=2, d_ff=48, vocab_size=101)
CONFIG = ParallelConfig(
    device="cpu",
    model=TINY,
    smaller_size="",
    context_length=16,
    precision="float32",
    num_warmup=1,
    num_steps=2,
    num_rounds=1,
    timeout_seconds=120.0,
    all_reduce_bytes=(10_000, 1_000_000),
    process_counts=(2,),
    bucket_sizes_mb=(0.001, 1.0),
)
FULL_STEP = FullStepConfig(
    device="cpu",
    model=TINY,
    dtype="float32",
    chunk_tokens=5,
    attention="fused",
    fused=False,
    warmup_ms=1.0,
    rep_ms=1.0,
    timeout_seconds=120.0,
)
