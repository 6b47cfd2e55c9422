"""What the jobs are called and hold, without Dagster: the console reads it at every start."""

from __future__ import annotations

GROUPS = {
    "data": ("crawl", "extract", "filters", "dedup", "sheets", "tokenizer", "tokens"),
    "data_quality": ("data_quality",),
    "pretrain": ("pretrain",),
    "evals": ("evals",),
    "parallel": ("parallel",),
    "all": ("crawl", "extract", "filters", "dedup", "sheets", "tokenizer", "tokens", "pretrain", "evals", "written"),
}
PLAN_JOB = "plan"
# Experiments are partitioned differently, so each is run by itself, in this order: what `cs336 run` does.
EXPERIMENTS = {
    "learning_rates": ("learning_rates", "learning_rate_study"),
    "batch_sizes": ("batch_size_limit", "batch_sizes", "batch_size_study"),
    "ablations": ("ablations", "ablation_study"),
    "side_studies": ("context_lengths", "vocabularies", "vocab_sizes", "side_studies"),
    "speedrun": ("speedrun_model", "speedrun_scores"),
    "samples": ("generated_samples",),
    "corpora": ("corpora_compared",),
    "experiment_log": ("experiment_log",),
    "submission": ("submission",),
}
# Also run by itself; `--job experiments` leaves it out, as most presets have other questions.
DATA_ABLATION = {"data_ablation": ("clean_text", "variant_tokens", "data_ablation", "data_ablation_study")}
# Time and memory of one GPU, in models of the handout's, so no preset's job needs them.
KERNELS = {
    "kernels": (
        *("attention_errors", "step_times", "baseline_times", "warmup_times", "precision_times", "compile_times"),
        *("kernel_choice_times", "kernel_profile", "kernel_tables", "attention_baselines", "memory_profile"),
        *("checkpointing_study", "precision_answers"),
    )
}
# Many small models, for a GPU; `python -m cs336.scaling.runner` trains the same cells without the graph, packed. The
# exercise needs nothing that the other jobs make.
SCALING = {
    "scaling": (
        *("isoflop_runs", "isoflop_profiles", "scaling_fits", "scaling_surrogate"),
        *("scaling_prediction", "check_runs", "scaling_check", "scaling_report"),
    ),
    "scaling_exercise": ("scaling_exercise",),
}
# From the start policy to GRPO and the scores: of what is made in cells only those of the chain. Text and base model
# are made first where the preset starts from its own.
REASONING_CHAIN = "reasoning"
REASONING = {
    REASONING_CHAIN: (
        *("reasoning_problems", "start_policy", "sft_model", "expert_iteration_model", "grpo_model"),
        *("longer_sft_model", "reasoning_scores", "reasoning_study", "zero_shot_analysis", "rollout_log"),
    ),
    # The handout's experiments around the chain: all cells, and what they say.
    "reasoning_experiments": (
        *("sft_model", "expert_iteration_model", "grpo_model", "reasoning_scores"),
        *("sft_study", "expert_iteration_study", "grpo_study", "reasoning_leaderboard"),
        *("length_normalization", "expert_iteration_comparison", "off_policy_reasoning", "prompt_ablation"),
    ),
}
# The alignment supplement, upon the base model.
INSTRUCT = {
    "instruct": (
        *("instruction_data", "instruction_model", "preference_data", "dpo_model"),
        *("base_answers", "instruction_answers", "dpo_answers", "chat_judgements", "alignment_tax"),
        *("dpo_study", "instruction_reading", "preference_reading", "failure_analysis", "red_teaming"),
        *("length_controlled_win_rates", "judge_agreements", "dpo_derivation"),
    )
}
SWEEPS = EXPERIMENTS | DATA_ABLATION | KERNELS | SCALING | REASONING | INSTRUCT
