"""After a sync the generator is the trainer: the same log-probabilities, nothing left of the old weights."""

import copy
from dataclasses import replace

import pytest
import torch

from cs336.generate.backend import SamplingParams
from cs336.generate.continuous import Engine
from cs336.generate.weight_sync import awake, check_logprobs, compare_logprobs, sync_weights, trainer_weights
from cs336.model.huggingface import load_huggingface
from cs336.model.transformer import TransformerLM
from tests.generate.toy import Characters, letters_model

PROMPTS = ["hello", "a", "themodelsees", "zzz"]
PARAMS = SamplingParams(n=2, max_tokens=12, seed=4, logprobs=True)


def trained(model, seed=7):
    """The model some optimizer steps later."""
    trainer = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in trainer.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return trainer


@pytest.mark.parametrize(
    "settings", [{}, {"num_kv_heads": 2, "qk_norm": True}, {"tied": True}, {"rope_layout": "half"}], ids=str
)
def test_after_a_sync_both_give_the_same_log_probabilities(settings):
    model = letters_model(**settings)
    trainer = trained(model)
    engine = Engine(model, Characters(), num_slots=3)
    addresses = [weight.data_ptr() for weight in model.parameters()]
    before = check_logprobs(trainer, engine, PROMPTS, PARAMS)
    assert before.max_logprob_difference > 0.1  # the check sees other weights
    assert sync_weights(trainer, engine) > 0
    after = check_logprobs(trainer, engine, PROMPTS, PARAMS)
    assert after.max_logprob_difference < 1e-4
    assert after.mean_logprob_difference <= after.max_logprob_difference
    assert after.metrics()["num_checked_tokens"] >= 2 * len(PROMPTS)
    assert [weight.data_ptr() for weight in model.parameters()] == addresses  # in place
    fresh = Engine(copy.deepcopy(trainer), Characters(), num_slots=3).generate(PROMPTS, PARAMS)
    assert engine.generate(PROMPTS, PARAMS) == fresh  # no prompt as the old weights read it


def test_a_cache_that_is_not_reset_is_seen_by_the_check():
    model = letters_model()
    trainer, engine = trained(model), Engine(model, Characters())
    engine.generate(PROMPTS, PARAMS)
    model.load_state_dict(trainer.state_dict())  # past the engine
    assert check_logprobs(trainer, engine, PROMPTS, PARAMS).max_logprob_difference > 0.1
    engine.reset_prefix_cache()
    assert check_logprobs(trainer, engine, PROMPTS, PARAMS).max_logprob_difference < 1e-4


def test_wrong_rows_are_seen_by_the_check():
    """Queries and keys in the other layout of the rotation: every shape fits."""
    model = letters_model()
    engine = Engine(TransformerLM(replace(model.config, rope_layout="half")).eval(), Characters())
    engine.model.load_state_dict(model.state_dict())
    assert check_logprobs(model, engine, PROMPTS, PARAMS).max_logprob_difference > 0.01
    sync_weights(model, engine)
    assert check_logprobs(model, engine, PROMPTS, PARAMS).max_logprob_difference < 1e-4


@pytest.mark.parametrize(("family", "tied"), [("Qwen2", True), ("Llama", False)])
def test_a_trainer_of_transformers(family, tied, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{family}Config")(
        vocab_size=27,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=40,
        tie_word_embeddings=tied,
    )
    theirs = getattr(transformers, f"{family}ForCausalLM")(config)
    theirs.save_pretrained(tmp_path)
    engine = Engine(load_huggingface(tmp_path), Characters())
    trainer = trained(theirs).train()
    sync_weights(trainer, engine)
    agreement = check_logprobs(trainer, engine, PROMPTS, PARAMS)
    assert agreement.max_logprob_difference < 1e-4
    assert trainer.training
    assert check_logprobs(theirs, engine, PROMPTS, PARAMS).max_logprob_difference > 0.01


def test_a_generator_of_lower_precision_differs_a_little():
    model = letters_model()
    engine = Engine(letters_model().to(torch.bfloat16), Characters())
    sync_weights(model, engine)
    assert 1e-5 < check_logprobs(model, engine, PROMPTS, PARAMS).max_logprob_difference < 0.1
    assert engine.model.lm_head.weight.dtype == torch.bfloat16


def test_wrapped_trainers_are_looked_into():
    model = letters_model()

    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.module = inner

    wrapped = Wrapper(torch.compile(model))  # compiles nothing until it is called
    names = [name for name, _ in trainer_weights(wrapped)]
    assert names == [name for name, _ in trainer_weights(model)]
    engine = Engine(model, Characters(), owns_weights=False)
    before = engine.generate(PROMPTS, PARAMS)
    sync_weights(wrapped, engine)  # its own model: nothing to copy
    assert engine.generate(PROMPTS, PARAMS) == before


def test_models_of_other_shapes_are_errors():
    engine = Engine(letters_model(), Characters())
    for other, message in (({"d_model": 16}, "shape"), ({"num_layers": 3}, "has not"), ({"num_layers": 1}, "lacks")):
        with pytest.raises(ValueError, match=message):
            sync_weights(letters_model(**other), engine)


def test_memory_is_handed_over_and_back():
    trainer = letters_model()
    engine = Engine(copy.deepcopy(trainer), Characters())
    expected = engine.generate(PROMPTS, PARAMS)

    def held():
        return sum(weight.untyped_storage().nbytes() for weight in engine.model.parameters())

    for level in (1, 2, 1):
        with awake(engine, trainer, level=level) as generator:
            assert generator.generate(PROMPTS, PARAMS) == expected
            assert held() > 0
        assert held() == 0
    with awake(engine):
        assert engine.generate(PROMPTS, PARAMS) == expected
    with pytest.raises(RuntimeError, match="mine"), awake(engine, trainer, level=2):
        raise RuntimeError("mine")
    assert held() == 0
    with pytest.raises(ValueError, match="lacks"), awake(engine, letters_model(num_layers=1), level=1):
        pass
    assert held() == 0
    with pytest.raises(ValueError, match="level 2"), awake(engine, level=2):
        pass


def test_nothing_to_compare_is_an_error():
    model = letters_model()
    engine = Engine(model, Characters())
    with pytest.raises(ValueError, match="no prompts"):
        check_logprobs(model, engine, [])
    with pytest.raises(ValueError, match="no samples"):
        compare_logprobs(model, [])
    with pytest.raises(ValueError, match="logprobs=True"):
        compare_logprobs(model, engine.generate(["a"], SamplingParams(max_tokens=2)))
