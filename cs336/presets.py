"""Every number that shapes an artifact, in one place.

A preset combines the configurations that live beside their owners, its source and its filters
included. Workers, devices and log intervals are not here: they never change an artifact. Here are
the built-in ones; `preset_lookup` finds them by name, and reads those of your own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

from cs336.catalog import ENTRIES
from cs336.crawl.common_crawl import CommonCrawl
from cs336.crawl.local_docs import LocalDocs
from cs336.crawl.local_files import TextFiles, WarcFiles
from cs336.crawl.several import Several
from cs336.crawl.source import Source
from cs336.dedup.exact_lines import LineConfig
from cs336.dedup.minhash import MinHashConfig
from cs336.evals.generated_tasks import DIGITS, GeneratedConfig
from cs336.evals.suite import ChatEvalConfig, JudgeConfig
from cs336.evals.task import EvalConfig
from cs336.extract.shard import ExtractConfig
from cs336.filters.c4 import C4Config
from cs336.filters.pipeline import FILTERS, FilterConfig
from cs336.filters.quality import QualityConfig
from cs336.filters.toxicity import ToxicityConfig
from cs336.model.transformer import ModelConfig
from cs336.posttrain.config import ReasoningConfig, questions_at_once
from cs336.posttrain.dpo import DpoConfig
from cs336.posttrain.instruction_sft import InstructionSftConfig
from cs336.posttrain.instructions import InstructionsConfig, PreferencesConfig
from cs336.posttrain.problems import ProblemsConfig
from cs336.posttrain.recipes import (
    MATH_PROBLEMS,
    MATH_REASONING,
    REASONER_CHAT_EVALS,
    REASONER_DPO,
    REASONER_INSTRUCTION_SFT,
    REASONER_INSTRUCTIONS,
    REASONER_PREFERENCES,
    REASONER_PROBLEMS,
    REASONER_REASONING,
    REASONER_TEXT,
    TINY_PROBLEMS,
    TINY_REASONING,
)
from cs336.posttrain.start import PolicyConfig
from cs336.profiling.config import TINY_PROFILING, ProfilingConfig
from cs336.profiling.parallel_config import FullStepConfig, ParallelConfig
from cs336.scaling.grid import PredictionConfig, ScalingConfig
from cs336.tokenizer.formats import END_OF_TEXT
from cs336.tokenizer.train import BpeConfig
from cs336.tokens.shards import SplitConfig
from cs336.train.data_ablation import DataAblationConfig
from cs336.train.experiments import ExperimentConfig, SpeedrunConfig
from cs336.train.loop import TrainConfig


@dataclass(frozen=True)
class Preset:
    """One whole experiment, from where the text comes from to how the model is scored.

    Attributes:
        experiments: what its sweeps and ablations vary.
        speedrun: the best model for a given time.
        scaling: which grid of small models it trains.
        prediction: what it predicts from that grid, and how it is checked.
        data_ablation: how the variants of the data are compared.
        held_out: clean text that they are compared on; None takes the documents that `split` holds out.
        measured_filters: those that are run; the others are off, and recorded as such.
        validation: catalogue entry of a text that is only evaluated on; "" holds documents of its own text out.
        parallel: what the studies of parallel training measure.
        full_step: the contest's training step.
        policy: where post-training starts.
        problems: what is reasoned about.
        reasoning: how: SFT, Expert Iteration, GRPO, and what they are compared with.
        c4: C4's line rules, which come before Gopher's; off unless a preset enables them.
        profiling: the grids of the studies of time and memory on one GPU; they have models of their own.
        instructions, instruction_sft: what a model is tuned on to follow instructions, which model, and how.
        preferences, dpo: the pairs that it is tuned on then, and how.
        chat_evals, judges: how tuned models are asked, and who judges their free answers.
        fetch: download the external data sets it names; otherwise only what is there is used.
        max_training_seconds: what a check allows the training to take; changes no artifact.
    """

    name: str
    source: Source
    extract: ExtractConfig
    quality: QualityConfig
    toxicity: ToxicityConfig
    filters: FilterConfig
    lines: LineConfig
    minhash: MinHashConfig
    bpe: BpeConfig
    split: SplitConfig
    model: ModelConfig
    train: TrainConfig
    evals: EvalConfig
    experiments: ExperimentConfig
    speedrun: SpeedrunConfig
    data_ablation: DataAblationConfig
    scaling: ScalingConfig
    prediction: PredictionConfig
    parallel: ParallelConfig
    full_step: FullStepConfig
    problems: ProblemsConfig
    reasoning: ReasoningConfig
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    held_out: TextFiles | None = None
    measured_filters: tuple[str, ...] = FILTERS
    c4: C4Config = dataclasses.field(default_factory=C4Config)
    profiling: ProfilingConfig = dataclasses.field(default_factory=ProfilingConfig)
    instructions: InstructionsConfig = dataclasses.field(default_factory=InstructionsConfig)
    instruction_sft: InstructionSftConfig = dataclasses.field(default_factory=InstructionSftConfig)
    preferences: PreferencesConfig = dataclasses.field(default_factory=PreferencesConfig)
    dpo: DpoConfig = dataclasses.field(default_factory=DpoConfig)
    chat_evals: ChatEvalConfig = dataclasses.field(default_factory=ChatEvalConfig)
    judges: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)
    seed: int = 0
    validation: str = ""
    fetch: bool = False
    max_training_seconds: float = float("inf")

    def __post_init__(self) -> None:
        for name, values, known in (
            ("measured_filters", self.measured_filters, FILTERS),
            ("validation", (self.validation,), ("", *sorted(ENTRIES))),
        ):
            unknown = [value for value in values if value not in known]
            if unknown:
                raise ValueError(f"{name}: there is no {unknown[0]!r}; there are {', '.join(filter(None, known))}")
        there = self.problems.num_train  # 0 is what a file has, which is known when it is read
        for name, asked in questions_at_once(self.reasoning, self.problems).items():
            if 0 < there < asked:
                raise ValueError(
                    f"problems: num_train is {there}, but a batch of {name} asks {asked} different questions"
                )


_EASY = GeneratedConfig(levels=(1,), max_value=100)  # one step: what the smallest models can learn
_MIDDLING = GeneratedConfig(levels=(1, 2, 3))
_TWO_LAYERS = ModelConfig(context_length=64, d_model=128, num_layers=2, num_heads=4, vocab_size=1_000)
TINY = Preset(  # two CPU cores, minutes, no network
    name="tiny",
    source=LocalDocs(sample=0.2, num_shards=4),  # 6 MB reach the tokenizer
    extract=ExtractConfig(),
    # The standard library's pages are the edited ones; of so few documents no more bigrams are worth a number.
    quality=QualityConfig(reference_pattern=r"/stdlib/", bucket=20_000),
    toxicity=ToxicityConfig(),
    filters=FilterConfig(),
    lines=LineConfig(),
    minhash=MinHashConfig(),
    bpe=BpeConfig(vocab_size=4_096),
    split=SplitConfig(valid_fraction=0.03),
    # Wide and shallow learns most in two minutes: of five shapes tried at equal time, the lowest loss.
    model=ModelConfig(context_length=256, d_model=256, num_layers=2, num_heads=4),
    train=TrainConfig(  # 819,200 tokens; of the learning rates 1.5, 3, 6 and 10e-3, the middle two were best and equal
        batch_size=8,
        num_steps=400,
        learning_rate=4e-3,
        min_learning_rate=1e-4,
        warmup_steps=20,
        valid_interval=50,
        checkpoint_interval=50,
    ),
    evals=EvalConfig(max_mmlu=200, max_gsm8k=100, max_new_tokens=48),
    experiments=ExperimentConfig(  # half an hour of runs on two cores: to see how it is done, not to learn from
        num_tokens=204_800,
        learning_rates=(1e-3, 4e-3, 1.6e-2, 6.4e-2, 1.0),
        batch_sizes=(1, 4, 16),
        batch_rate_factors=(0.5, 1.0),
        small_batch_size=1,
        small_batch_seconds=20.0,
        small_batch_warmup_steps=20,
        small_batch_valid_interval=100,
        max_batch_size=32,
        lower_rate_factors=(0.3,),
        num_seeds=1,
        context_lengths=(64, 128),
        vocab_sizes=(1_024, 2_048),
    ),
    speedrun=SpeedrunConfig(
        model=ModelConfig(context_length=256, d_model=256, num_layers=2, num_heads=4, qk_norm=True),
        train=TrainConfig(
            batch_size=8,
            num_steps=100_000,
            learning_rate=4e-3,
            min_learning_rate=0.0,
            warmup_steps=20,
            schedule="wsd",
            decay_fraction=0.5,
            schedule_by_clock=True,
            max_seconds=60.0,
            optimizer="muon",
            valid_interval=50,
            checkpoint_interval=1_000,
        ),
    ),
    data_ablation=DataAblationConfig(num_tokens=204_800),
    scaling=ScalingConfig(grid="tiny"),
    prediction=PredictionConfig(max_budget=1e10, check="tiny_check"),
    profiling=TINY_PROFILING,
    parallel=ParallelConfig(  # over Gloo, to see how it is done: its figures say nothing of GPUs
        device="cpu",
        model=_TWO_LAYERS,
        smaller_size="",
        context_length=64,
        num_warmup=2,
        num_steps=3,
        num_rounds=1,
        all_reduce_bytes=(100_000, 1_000_000, 10_000_000),
        process_counts=(2, 4),
        bucket_sizes_mb=(0.1, 1.0),
    ),
    full_step=FullStepConfig(
        device="cpu",
        model=_TWO_LAYERS,
        dtype="float32",
        chunk_tokens=32,
        attention="fused",
        fused=False,
        warmup_ms=100.0,
        rep_ms=500.0,
    ),
    problems=TINY_PROBLEMS,
    reasoning=TINY_REASONING,
    instructions=InstructionsConfig(
        datasets=("t0-sample", "alpaca-demo"),
        max_examples=800,
        num_valid=300,
        num_problems=4_000,
        problems=_EASY,
        sample_if_absent=True,
    ),
    instruction_sft=InstructionSftConfig(
        batch_size=16, micro_batch_size=8, learning_rate=1e-3, seq_length=128, valid_interval=50
    ),
    preferences=PreferencesConfig(
        datasets=("hh-rlhf-harmless-test",), num_valid=200, num_problems=1_000, sample_if_absent=True
    ),
    dpo=DpoConfig(batch_size=16, micro_batch_size=8, learning_rate=2e-5, valid_interval=5),
    chat_evals=ChatEvalConfig(
        max_mmlu=200,
        max_gsm8k=100,
        max_alpaca=100,
        max_safety=100,
        num_generated=200,
        problems=_EASY,
        max_new_tokens=64,
    ),
    max_training_seconds=240,
)
REAL_PAGES = replace(  # what sheets/real_pages.toml was read on: WARC files of yours below crawl/, C4's rules on top
    TINY,
    name="real_pages",
    source=WarcFiles(paths=("crawl/*.warc.gz",)),
    c4=C4Config(enabled=True),
)
MIXTURE = replace(  # real pages in many languages, news and books, to see what each stage of the data is worth
    TINY,
    name="mixture",
    source=Several(
        sources=(
            WarcFiles(paths=("crawl/*.warc.gz",)),
            TextFiles(
                paths=(
                    "$CS336_DATA/text/bbc/bbc.jsonl.gz",
                    "$CS336_DATA/text/reuters21578/reuters.jsonl.gz",
                    "$CS336_DATA/text/books/valid.jsonl.gz",
                ),
                name_parts=2,
            ),
        )
    ),
    quality=QualityConfig(),
    held_out=TextFiles(paths=("$CS336_DATA/text/c4_demo.jsonl.gz",)),  # 300 cleaned pages, as the course's C4 text is
    model=ModelConfig(context_length=256, d_model=192, num_layers=3, num_heads=4),  # 2.9 M parameters
    data_ablation=DataAblationConfig(num_tokens=524_288),
)
COURSE = replace(  # the model of CS336's assignment 1 (2025), on web text; one H100, under an hour
    TINY,
    name="course",
    source=CommonCrawl(snapshot="CC-MAIN-2025-18", num_files=32),
    quality=QualityConfig(reference_pattern="", reference_list="wikipedia-urls"),
    bpe=BpeConfig(vocab_size=10_000),
    split=SplitConfig(valid_fraction=0.005),
    model=ModelConfig(context_length=256, d_model=512, num_layers=4, num_heads=16, d_ff=1_344),
    train=TrainConfig(  # 327,680,000 tokens
        batch_size=256,
        num_steps=5_000,
        learning_rate=2e-3,
        min_learning_rate=2e-4,
        warmup_steps=250,
        precision="bfloat16",
        valid_interval=250,
        checkpoint_interval=1_000,
    ),
    evals=EvalConfig(max_new_tokens=128),  # all questions; half of the context is left for them
    experiments=ExperimentConfig(
        num_tokens=41_943_040,  # 640 steps of the course's batch
        learning_rates=(2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 0.1, 0.3, 1.0),
        batch_sizes=(1, 8, 64, 128, 256),
        context_lengths=(64, 128, 512),
        vocab_sizes=(2_500, 5_000, 20_000, 32_000),
    ),
    scaling=ScalingConfig(grid="full"),
    prediction=PredictionConfig(max_budget=1e18, check="final"),
    speedrun=SpeedrunConfig(
        model=ModelConfig(context_length=512, d_model=768, num_layers=8, num_heads=6, qk_norm=True, dropout=0.1),
        train=TrainConfig(
            batch_size=128,
            num_steps=1_000_000,
            learning_rate=3e-3,
            min_learning_rate=0.0,
            warmup_steps=250,
            schedule="wsd",
            decay_fraction=0.5,
            schedule_by_clock=True,
            max_seconds=8.5 * 60,
            optimizer="muon",
            precision="bfloat16",
            valid_interval=250,
            checkpoint_interval=5_000,
            keep_checkpoints=1,
        ),
    ),
    profiling=ProfilingConfig(),
    parallel=ParallelConfig(),
    full_step=FullStepConfig(keep_attention=True),
    instructions=replace(TINY.instructions, max_examples=0, num_problems=50_000, problems=_MIDDLING),
    instruction_sft=InstructionSftConfig(
        batch_size=64, micro_batch_size=64, learning_rate=5e-4, seq_length=256, precision="bfloat16"
    ),
    preferences=PreferencesConfig(num_problems=10_000, sample_if_absent=True),
    dpo=DpoConfig(micro_batch_size=32, learning_rate=1e-5, precision="bfloat16"),
    chat_evals=ChatEvalConfig(problems=_MIDDLING, max_new_tokens=128),
    fetch=True,
    max_training_seconds=3_600,
)
MIXTURE_LARGE = replace(  # the same for a GPU: the course's model, which reads every variant several times
    MIXTURE,
    name="mixture_large",
    bpe=COURSE.bpe,
    model=COURSE.model,
    train=replace(COURSE.train, batch_size=64),
    data_ablation=DataAblationConfig(num_tokens=41_943_040),
    profiling=COURSE.profiling,
)
RAW = replace(  # text taken as it is: no filter and no deduplication changes it; overlap with evaluations is told
    COURSE,
    name="raw",
    quality=QualityConfig(),
    measured_filters=("contaminated",),
    filters=FilterConfig(languages=(), max_eval_hits=None, mask_pii=False),
    lines=LineConfig(enabled=False, min_words=0),
    minhash=MinHashConfig(enabled=False),
    fetch=False,
)
PROSE = replace(  # 149 MB of books, film reviews and news (37.9 M tokens, so 8.7 passes) below the data folder
    RAW,
    name="prose",
    source=TextFiles(
        paths=(
            "$CS336_DATA/text/books/train.jsonl.gz",
            "$CS336_DATA/text/books/valid.jsonl.gz",
            "$CS336_DATA/text/imdb/train.jsonl.gz",
            "$CS336_DATA/text/imdb/test.jsonl.gz",
            "$CS336_DATA/text/bbc/bbc.jsonl.gz",
            "$CS336_DATA/text/reuters21578/reuters.jsonl.gz",
        ),
        name_parts=2,
    ),
    split=SplitConfig(valid_fraction=0.01),
    # About nine passes over the text: decay has to hold back what dropout alone does not.
    speedrun=replace(COURSE.speedrun, train=replace(COURSE.speedrun.train, weight_decay=0.3)),
)
SCALING = replace(  # the text of the scaling grid: 33.9 M tokens to train on with 32,000 entries, as the course has
    PROSE,
    name="scaling",
    bpe=BpeConfig(vocab_size=32_000),
    scaling=ScalingConfig(grid="h100"),
    # At 1e13 runs carry almost no signal; wide models want half the rate of the profiles, as runs at 6e15 show.
    prediction=PredictionConfig(min_budget=3e13, max_budget=1e15, check="check", rate_per_width=1.0),
)
TINYSTORIES = replace(  # the base of assignment 1's experiments; its problem learning_rate asks for a loss of 1.45
    RAW,
    name="tinystories",
    source=TextFiles(paths=("catalog:tinystories",)),
    split=SplitConfig(valid_pattern=r"^text://[^/]*valid\.txt"),  # the documents of the file for validation
)
TINYSTORIES_LOW = replace(  # its low-resource variant, for a CPU: a validation loss of 2.00
    TINYSTORIES,
    name="tinystories_low",
    train=replace(  # 40,960,000 tokens; the cosine ends with the last step
        COURSE.train,
        batch_size=32,
        learning_rate=1e-3,
        min_learning_rate=1e-4,
        precision="float32",
    ),
    max_training_seconds=7_200,  # the handout's own run took 1 h 22 min on a laptop's CPU
)
# The speedrun is the course's leaderboard: of 2025, 1.5 hours on one H100; of 2026, 45 minutes on one B200
# (`max_seconds = 2_700`), its loss at a context of 512, as this model has.
OWT = replace(  # the course's sample of OpenWebText: same architecture, same number of steps
    TINYSTORIES,
    name="owt",
    source=TextFiles(paths=("catalog:owt-sample",)),
    bpe=BpeConfig(vocab_size=32_000),
    speedrun=replace(COURSE.speedrun, train=replace(COURSE.speedrun.train, max_seconds=1.5 * 3_600)),
)
DATA_COURSE = replace(  # assignment 4's leaderboard: the data is free, the model and its training are not
    COURSE,
    name="data_course",
    # 1,250 partitions; a shard's text, 0.8 GB, is in a step's memory.
    source=CommonCrawl(snapshot="CC-MAIN-2025-18", num_files=5_000, files_per_shard=4, kind="wet"),
    quality=QualityConfig(),  # off: `filters` asks for no score of it
    bpe=BpeConfig(vocab_size=50_257, pretrained="gpt2-vocab"),
    split=SplitConfig(valid_fraction=0.0),
    validation="paloma-c4-100",
    model=ModelConfig(context_length=512, d_model=768, num_layers=12, num_heads=12, d_ff=2_048),
    # 131,072 tokens a step, 13.1 B in all. The course trains on two GPUs with 128 sequences each; here one GPU adds up
    # the gradients of two halves, which is the same batch.
    train=TrainConfig(
        batch_size=256,
        micro_batch_size=128,
        num_steps=100_000,
        learning_rate=1e-3,
        min_learning_rate=1e-4,
        warmup_steps=1_000,
        betas=(0.9, 0.98),
        eps=1e-9,
        precision="bfloat16",
        valid_in_float32=True,
        valid_interval=2_000,
        valid_batches=500,  # all of the validation text: 500 x 256 windows would be 65.5 M tokens
        checkpoint_interval=2_000,
    ),
    max_training_seconds=14 * 3_600,  # the handout's is 7 hours on two GPUs
)
TWO_B = replace(  # 2.07 B parameters; d_ff is 8/3 d_model, up to a multiple of 256; needs more than one GPU
    COURSE,
    name="2b",
    source=DATA_COURSE.source,  # assignment 4 of 2025
    bpe=BpeConfig(vocab_size=32_000),
    split=SplitConfig(valid_fraction=0.001),
    model=ModelConfig(context_length=2_048, d_model=2_560, num_layers=24, num_heads=20, d_ff=6_912),
    train=TrainConfig(  # 20 tokens per parameter: 41.3 B
        batch_size=512,
        num_steps=39_427,
        learning_rate=3e-4,
        min_learning_rate=3e-5,
        warmup_steps=1_000,
        precision="bfloat16",
        valid_interval=500,
        checkpoint_interval=500,
    ),
    evals=EvalConfig(max_new_tokens=512, mmlu_few_shot=5),
    max_training_seconds=float("inf"),
)
REASONER = replace(  # from text and worked problems to a model that reasons: one GPU, at most nine minutes a seed
    RAW,
    name="reasoner",
    source=Several(
        sources=(
            TextFiles(paths=("$CS336_DATA/text/bbc/bbc.jsonl.gz", "$CS336_DATA/text/reuters21578/reuters.jsonl.gz")),
            REASONER_TEXT,
        )
    ),
    bpe=BpeConfig(vocab_size=2_048, special_tokens=(END_OF_TEXT, *DIGITS)),  # each digit is a token of its own
    split=SplitConfig(valid_fraction=0.005),
    model=ModelConfig(context_length=352, d_model=512, num_layers=8, num_heads=8, qk_norm=True),  # 27 M parameters
    train=TrainConfig(
        batch_size=128,
        num_steps=1_000_000,
        learning_rate=3e-3,
        min_learning_rate=0.0,
        warmup_steps=250,
        schedule="wsd",
        decay_fraction=0.4,
        schedule_by_clock=True,
        max_seconds=130.0,
        optimizer="muon",
        precision="bfloat16",
        valid_interval=500,
        checkpoint_interval=5_000,
        keep_checkpoints=1,
    ),
    problems=REASONER_PROBLEMS,
    reasoning=REASONER_REASONING,
    instructions=REASONER_INSTRUCTIONS,
    instruction_sft=REASONER_INSTRUCTION_SFT,
    preferences=REASONER_PREFERENCES,
    dpo=REASONER_DPO,
    chat_evals=REASONER_CHAT_EVALS,
    max_training_seconds=240,
)
QWEN_MATH = replace(  # the handout's: a checkpoint of the Hub on MATH, each method from the start policy; one GPU
    COURSE,
    name="qwen_math",
    policy=PolicyConfig(start="qwen2.5-math-1.5b"),
    problems=MATH_PROBLEMS,
    reasoning=MATH_REASONING,
)
# The alignment supplement: Llama 3.1 8B is tuned, a Llama of 70 B judges; needs no base model of ours. Weights stay in
# fp32 and are computed with in bf16: stored in bf16, with steps this small, most of an update would be rounded away.
# AdamW would then hold 16 bytes a parameter, 20 in the update, 150 GiB; RMSprop, the handout's choice for DPO, 12, and
# 16 in the update, 120 GiB: that fits on an H200, and DPO's reference (30 GiB) on a second GPU. All in bf16 it is half.
LLAMA = replace(
    COURSE,
    name="llama",
    instructions=InstructionsConfig(base="llama-3.1-8b"),
    instruction_sft=InstructionSftConfig(optimizer="rmsprop", precision="bfloat16", valid_interval=500),
    preferences=PreferencesConfig(kinds=("hh",)),
    dpo=DpoConfig(precision="bfloat16", valid_interval=100),
    chat_evals=ChatEvalConfig(num_generated=1_000, dtype="bfloat16"),
    judges=JudgeConfig(model="llama-3.3-70b-instruct"),
)
PRESETS = {
    preset.name: preset
    for preset in (
        TINY,
        REAL_PAGES,
        MIXTURE,
        MIXTURE_LARGE,
        COURSE,
        PROSE,
        SCALING,
        TINYSTORIES,
        TINYSTORIES_LOW,
        OWT,
        DATA_COURSE,
        TWO_B,
        REASONER,
        QWEN_MATH,
        LLAMA,
    )
}
