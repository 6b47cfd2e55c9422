"""What the presets reason about, and how: numbers with their origin."""

from __future__ import annotations

from dataclasses import replace

from cs336.evals.generated_tasks import GeneratedConfig, TraceConfig
from cs336.evals.generated_text import GeneratedText
from cs336.evals.suite import ChatEvalConfig
from cs336.posttrain.config import ReasoningConfig
from cs336.posttrain.dpo import DpoConfig
from cs336.posttrain.expert_iteration import ExpertIterationConfig
from cs336.posttrain.grpo import GrpoConfig
from cs336.posttrain.instruction_sft import InstructionSftConfig
from cs336.posttrain.instructions import InstructionsConfig, PreferencesConfig
from cs336.posttrain.problems import ProblemsConfig
from cs336.posttrain.sft import SftConfig

# ---- tiny: two cores, a minute and a half, from a base model that has read documentation and no sums

# Its vocabulary was learnt from documentation, so that a number may be any token: in this time sums up to 100 stay a
# matter of chance (1 % after 94 updates of 32). Up to 10 there are 72 different steps, and a model can learn them all:
# four base models, seeds 0 to 3 (the last two trained in bf16), solved none of the held-out problems; after SFT 36, 40,
# 45 and 38 % of 120, each asked twice, after GRPO 61, 52, 64 and 53 %. In 88 s: SFT 63, GRPO 18, two answers each 6.
TINY_PROBLEMS = ProblemsConfig(
    num_train=160,  # 8 a step
    num_valid=130,  # all that a seed's stream gives; of 64 problems the best of several validations is one by chance
    num_test=120,
    num_traces=1_500,
    num_valid_traces=100,
    generated=GeneratedConfig(levels=(2,), kinds=("sums",), max_value=10),
    # The answer at once is seldom right, the steps mostly are: GRPO has the share of the former to win.
    traces=TraceConfig(direct=0.5, steps=0.5, digits=0.0),
)
TINY_REASONING = ReasoningConfig(
    # Many small updates: as many examples in batches of 16 or 32 are learnt far worse. The loss on held-out traces was
    # 0.111 without weight decay, 0.094 with 1, 0.087 with 3; at a rate of 3e-3 the training loss stays twice as high.
    sft=SftConfig(
        batch_size=8,
        num_epochs=4,
        learning_rate=1.5e-3,
        schedule="cosine",
        warmup_fraction=0.05,
        weight_decay=1.0,
        valid_interval=10**9,
        best_by="valid_accuracy",
        best_is="highest",
    ),
    expert_iteration=ExpertIterationConfig(n_ei_steps=2, question_batch_size=64, group_size=4, sampling_max_tokens=60),
    grpo=GrpoConfig(  # 5e-4 ruins what SFT has taught; at 1e-4 some still answer at once after 25 steps
        n_grpo_steps=20,
        learning_rate=1.5e-4,
        rollout_batch_size=64,
        group_size=8,
        train_batch_size=64,
        gradient_accumulation_steps=2,
        sampling_max_tokens=60,
        valid_interval=10,
    ),
    expert_iteration_runs=(),
    chain=("sft", "grpo"),
    score_tasks=("reasoning",),
)

# ---- reasoner: one GPU, at most nine minutes in all; measured on models of 0.6 and 2 M parameters and scaled

_PROBLEMS = GeneratedConfig(levels=(3, 4, 5), max_value=1_000)
# The answer at once is right a few times in a hundred, the answer digit by digit almost always: a model that has learnt
# this mixture is right as often as it is careful, whatever it has seen of each, and rewards can teach it to be careful.
# Texts hold the same mixture, or the base model would be the better one.
_STYLES = TraceConfig(direct=0.6, steps=0.2, digits=0.2)
_NUM_PRETRAINED = 160_000
REASONER_TEXT = GeneratedText(
    num_traces=_NUM_PRETRAINED, num_drills=30_000, problems=_PROBLEMS, traces=_STYLES, tagged=False, num_shards=4
)
REASONER_PROBLEMS = ProblemsConfig(
    num_train=3_200,  # none twice in 80 steps of 32
    num_valid=256,
    num_test=1_000,
    num_traces=10_000,
    num_valid_traces=512,
    first=_NUM_PRETRAINED,
    generated=_PROBLEMS,
    traces=_STYLES,
)
_MAX_TOKENS = 256  # the longest trace has 235
REASONER_REASONING = ReasoningConfig(
    sft=SftConfig(  # by the loss: an accuracy of 256 answers is 6 points either way
        batch_size=64,
        learning_rate=1.5e-4,  # 1e-3 at a width of 128 damages the arithmetic first, and mends it as it falls
        num_epochs=2,
        schedule="cosine",
        warmup_fraction=0.05,
        precision="bfloat16",
        valid_interval=50,
        patience=3,
    ),
    expert_iteration=ExpertIterationConfig(
        n_ei_steps=1,  # the second moves the styles as far as GRPO does
        question_batch_size=512,
        group_size=4,
        sampling_max_tokens=_MAX_TOKENS,
        sft=SftConfig(
            batch_size=64,
            learning_rate=1e-4,
            precision="bfloat16",
            best_by="valid_accuracy",
            best_is="highest",
            keep="last",
            valid_interval=10**9,
        ),
    ),
    grpo=GrpoConfig(  # rates go as one over the width: 1e-4 to 3e-4 is good at 128, 1e-3 ruins
        n_grpo_steps=80,
        learning_rate=6e-5,
        rollout_batch_size=256,
        group_size=8,
        train_batch_size=256,
        gradient_accumulation_steps=2,
        sampling_max_tokens=_MAX_TOKENS,
        precision="bfloat16",
        valid_interval=20,
    ),
    sft_runs=("full", "128", "256", "512", "1024"),
    expert_iteration_runs=("expert-iteration", "batch-1024", "samples-8", "epochs-2"),
    grpo_runs=(
        *("grpo", "no-baseline", "constant-length", "no-std", "rate-3e-5", "rate-1e-4"),
        *("off-policy-1x2", "off-policy-1x4", "off-policy-2x2", "no-clip-1x4"),
        # No text or trace of this preset has a box, which the bare question's reward wants: what a form that was never
        # read costs.
        "question-only",
    ),
    grpo_from="expert_iteration",
    longer_sft=True,
    score_tasks=("reasoning", "gsm8k"),
)

# The other way from the same base model: instructions, then DPO. Asked in the Alpaca form, a problem of level 5 worked
# digit by digit does not fit into the context; of level 4 the longest has 329 of 352 tokens, 138 of them the prompt's.
_ASKED = replace(_PROBLEMS, levels=(3, 4))
REASONER_INSTRUCTIONS = InstructionsConfig(
    datasets=("t0-sample", "alpaca-demo"),
    max_examples=2_000,
    num_valid=300,
    num_problems=10_000,
    problems=_ASKED,
    traces=_STYLES,
)
REASONER_INSTRUCTION_SFT = InstructionSftConfig(
    batch_size=64,
    micro_batch_size=64,
    learning_rate=2e-4,
    num_epochs=2,
    schedule="cosine",
    warmup_fraction=0.05,
    precision="bfloat16",
    seq_length=352,
    valid_interval=50,
)
REASONER_PREFERENCES = PreferencesConfig(
    datasets=("hh-rlhf-harmless-test",),
    num_problems=1_000,
    num_samples=8,  # if 3 of 10 are right, 94 % of the problems have a right one among 8
)
REASONER_DPO = DpoConfig(
    batch_size=32,
    micro_batch_size=32,
    optimizer="adamw",  # RMSprop's first steps are ten times as long as later ones: of so few, most of the way
    learning_rate=1.25e-5,  # at a width of 128: 5e-5
    schedule="cosine",
    warmup_fraction=0.1,
    num_epochs=2,
    precision="bfloat16",
    valid_interval=5,
    keep="last",  # what a few hundred held-out pairs would choose, they could not measure
    # A right answer is most often a careful one, and a wrong one the answer at once: a few nats are the whole
    # difference, and a small beta goes on until the arithmetic is gone. Of problems of two steps a model of 0.6 M
    # parameters solved 20 % before; after 30 steps 9 % with 0.1 (at twice this rate), 43 % with 0.5 (33 % at twice the
    # rate; all three constant), and 52 % with 1 and a falling rate.
    beta=1.0,
)
REASONER_CHAT_EVALS = ChatEvalConfig(
    max_mmlu=200,
    max_gsm8k=200,
    max_alpaca=100,
    max_safety=100,
    num_generated=1_000,
    problems=_ASKED,
    generated_temperature=1.0,
    max_new_tokens=208,
)

# ---- the handout's: MATH, from a checkpoint of the Hub

MATH_PROBLEMS = ProblemsConfig(
    task="math",
    template="r1_zero",
    num_train=0,
    num_valid=1_024,  # the least that the handout asks for; held out of the training problems
    num_test=0,
    num_traces=0,
    num_valid_traces=128,
)
_MATH_SFT = SftConfig(
    batch_size=64,
    micro_batch_size=2,  # the handout's, which fits into 80 GB
    learning_rate=1e-5,
    num_epochs=2,
    # Weights stay in fp32: in bf16, with steps this small, most of an update would be rounded away.
    precision="bfloat16",
    valid_interval=25,
    best_by="valid_accuracy",
    best_is="highest",
)
MATH_REASONING = ReasoningConfig(
    sft=_MATH_SFT,
    expert_iteration=ExpertIterationConfig(sft=replace(_MATH_SFT, num_epochs=1, keep="last", valid_interval=10**9)),
    grpo=GrpoConfig(precision="bfloat16", keep="last"),
    sft_runs=("full", "128", "256", "512", "1024", "full-correct"),
    expert_iteration_runs=("expert-iteration", "batch-1024", "batch-2048", "samples-8", "epochs-2"),
    grpo_runs=(
        *("grpo", "rate-3e-6", "rate-3e-5", "no-baseline", "constant-length", "no-std"),
        *("off-policy-1x2", "off-policy-1x4", "off-policy-2x2", "off-policy-2x4", "no-clip-2x4", "question-only"),
    ),
    chain=("grpo",),
    expert_iteration_from="",
    grpo_from="",
    score_tasks=("reasoning", "gsm8k"),
    num_score_seeds=3,  # the handout samples at temperature 1; so that what that alone does to a score is seen
)
