"""The configuration: each check by a body that fails it alone, the tag of the optimizer, the hash."""

import hashlib
import json

import pytest
from pydantic import ValidationError

from cs336.service.job_config import (
    AdamWConfig,
    FinalTrainingConfig,
    SGDConfig,
    TrainingConfig,
    config_hash,
)
from tests.service.job_examples import architecture, body, config


def optimizer(**changes):
    return {"optimizer": {"type": "adamw"} | changes}


def schedule(**changes):
    return optimizer(schedule=changes)


def shaped(**changes):
    return {"architecture": architecture(**changes)}


REFUSED = {
    "tokens not divisible by 512 * batch": {"total_train_tokens": 8 * 2 * 512 + 512},
    "steps not divisible by n_evals": {"n_evals": 3},
    "validation tokens not divisible": {"val_batch_size": 3},
    "validation batch too large": {"val_batch_size": 1024},
    "too many tokens": {"total_train_tokens": 500_000_000_000 + 4 * 2 * 512},
    "no tokens": {"total_train_tokens": 0},
    "no batch": {"train_batch_size": 0},
    "no evaluation": {"n_evals": 0},
    "too many evaluations": {"n_evals": 1_025, "total_train_tokens": 1_025 * 2 * 512},
    "no time": {"max_runtime_seconds": 0},
    "more than 12 hours": {"max_runtime_seconds": 43_201},
    "half a second": {"max_runtime_seconds": 1.5},
    "negative seed": {"model_seed": -1},
    "unknown key": {"sequence_length": 512},
    "unknown key of the architecture": shaped(dropout=0.1),
    "unknown key of the optimizer": optimizer(momentum=0.9),
    "unknown key of the schedule": schedule(kind="wsd"),
    "hidden is not heads * head_dim": shaped(hidden_size=24),
    "grouped queries": shaped(num_key_value_heads=1),
    "odd head_dim": shaped(head_dim=7, hidden_size=14),
    "narrow feed-forward": shaped(intermediate_size=15),
    "unknown dtype": shaped(dtype="float16"),
    **{f"{name} is zero": shaped(**{name: 0}) for name in architecture() if name.endswith(("size", "dim", "eps"))},
    "no layer": shaped(num_hidden_layers=0),
    "no head": shaped(num_attention_heads=0, num_key_value_heads=0),
    "theta is zero": shaped(rope_theta=0),
    "number in quotes": shaped(hidden_size="16"),
    "a flag for a number": shaped(num_hidden_layers=True),
    "a number for a flag": shaped(attention_bias=0),
    "beta1 of 1": optimizer(beta1=1.0),
    "beta2 below 0": optimizer(beta2=-0.1),
    "eps of 0": optimizer(eps=0.0),
    "eps_root below 0": optimizer(eps_root=-1e-9),
    "decay below 0": optimizer(weight_decay=-0.1),
    "clip of 0": optimizer(grad_clip_norm=0.0),
    "rate of 0": schedule(peak_value=0.0),
    "infinite rate": schedule(peak_value=float("inf")),
    "final_lr_frac above 1": schedule(final_lr_frac=1.1),
    "warmup_frac above 1": schedule(warmup_frac=1.1),
    "warmup_frac below 0": schedule(warmup_frac=-0.1),
    "init_value below 0": schedule(init_value=-1e-9),
    "no tag": {"optimizer": {"schedule": {}, "grad_clip_norm": 1.0}},
    "unknown tag": {"optimizer": {"type": "lion"}},
    "SGD with a beta": {"optimizer": {"type": "sgd", "beta1": 0.9}},
}


def test_the_example_is_accepted():
    assert config().num_steps == 8


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED.keys())
def test_refused(changes):
    with pytest.raises(ValidationError):
        TrainingConfig.model_validate(body(**changes))


@pytest.mark.parametrize("missing", [name for name in body() if name != "n_evals"])
def test_all_but_n_evals_must_be_given(missing):
    given = body()
    del given[missing]
    with pytest.raises(ValidationError, match="required"):
        TrainingConfig.model_validate(given)


def test_the_handouts_defaults():
    given = body(optimizer={"type": "adamw"}, total_train_tokens=32 * 2 * 512)
    del given["n_evals"]
    read = TrainingConfig.model_validate(given)
    assert read.n_evals == 16
    assert read.optimizer.model_dump() == {
        "type": "adamw",
        "schedule": {"peak_value": 3e-4, "final_lr_frac": 0.1, "warmup_frac": 0.05, "init_value": 0.0},
        "weight_decay": 0.01,
        "beta1": 0.9,
        "beta2": 0.95,
        "eps": 1e-8,
        "eps_root": 1e-8,
        "grad_clip_norm": 1.0,
    }
    assert TrainingConfig.model_validate(body(**optimizer(grad_clip_norm=None))).optimizer.grad_clip_norm is None


def test_a_body_that_both_optimizers_share_is_what_its_tag_says():
    shared = {"schedule": {"peak_value": 0.1}, "grad_clip_norm": 1.0}
    assert isinstance(config(optimizer={"type": "adamw"} | shared).optimizer, AdamWConfig)
    assert isinstance(config(optimizer={"type": "sgd"} | shared).optimizer, SGDConfig)


def test_a_final_submission_may_take_48_hours():
    assert FinalTrainingConfig.model_validate(body(max_runtime_seconds=172_800)).max_runtime_seconds == 172_800
    with pytest.raises(ValidationError):
        FinalTrainingConfig.model_validate(body(max_runtime_seconds=172_801))
    with pytest.raises(ValidationError):
        FinalTrainingConfig.model_validate(body(**shaped(head_dim=7, hidden_size=14)))


def test_the_hash_is_80_bits_of_blake2s_over_canonical_json():
    text = json.dumps(config().model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    assert config_hash(config()) == hashlib.blake2s(text.encode(), digest_size=10).hexdigest()
    assert len(config_hash(config())) == 20


def test_the_hash_tells_apart_what_differs_and_nothing_else():
    one = config(**schedule(peak_value=1))
    assert config_hash(one) == config_hash(config(**schedule(peak_value=1.0)))
    assert config_hash(config(**optimizer())) == config_hash(config(**optimizer(beta2=0.95)))  # a default, spelt out
    reordered = TrainingConfig.model_validate(dict(reversed(body().items())))
    assert config_hash(reordered) == config_hash(config())
    shared = {"schedule": {"peak_value": 0.1}}
    others = [{"model_seed": 1}, {"n_evals": 2}, {"max_runtime_seconds": 599}, shaped(tie_word_embeddings=True)]
    others += [{"optimizer": {"type": kind} | shared} for kind in ("adamw", "sgd")]
    assert len({config_hash(each) for each in [config(), *(config(**changes) for changes in others)]}) == 7
