"""A model as tasks ask for it: greedy or sampled, too long prompts, likelihoods, and by vLLM's form too."""

import importlib.util
import multiprocessing

import pytest
import torch

from cs336.evals.answerer import Answerer, open_answerer
from cs336.evals.reasoning import evaluate_reasoning
from cs336.evals.rewards import r1_zero_reward_fn, reward_each
from cs336.generate import generators
from cs336.generate.backend import Generation, HuggingFaceCodec, Sample
from cs336.generate.checkpoints import load_checkpoint
from cs336.generate.engine import continuation_logprobs, generate
from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.posttrain.policy import save_policy
from cs336.tokenizer.bpe import Tokenizer
from tests.posttrain.tokenizers import BOS, Letters, TheirLetters

# Without one of the bytes: vocabularies that have all of them are encoded by kernels, compiled for half a minute.
BYTES = Tokenizer({number: bytes([number]) for number in range(255)}, [], ["<|endoftext|>"])
ALL_BYTES = Tokenizer({number: bytes([number]) for number in range(256)}, [], ["<|endoftext|>"])
PROMPTS = ["What is 2 plus 3?", " ".join(map(str, range(40))), ""]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=256, context_length=48, d_model=16, num_layers=1, num_heads=2, d_ff=32)
    folder = tmp_path_factory.mktemp("model")
    save_policy(TransformerLM(shape), BYTES, folder)
    return load_checkpoint(folder)


def test_greedy_answers_are_those_of_the_plain_engine_and_long_prompts_lose_their_beginning(checkpoint):
    with open_answerer(checkpoint) as answerer:
        answers = answerer.generate(PROMPTS, max_new_tokens=12, stop=())
    plain = generate(checkpoint.model, BYTES, PROMPTS, max_new_tokens=12)
    assert [answer.text for answer in answers] == [each.text for each in plain]
    assert [answer.prompt_truncated for answer in answers] == [each.prompt_truncated for each in plain]
    assert [answer.prompt_truncated for answer in answers] == [False, True, False]


def test_samples_follow_the_seed(checkpoint):
    with open_answerer(checkpoint) as greedy:
        drawn = [
            [
                each.text
                for each in greedy.sampling(temperature=1.0, seed=seed).generate(PROMPTS, max_new_tokens=9, stop=())
            ]
            for seed in (0, 0, 1)
        ]
    assert drawn[0] == drawn[1] != drawn[2]


class _Echo:
    """A backend that answers every prompt with one text, and keeps what it was asked."""

    def __init__(self, text, finish="stop"):
        self.text, self.finish, self.asked = text, finish, []

    def generate(self, prompts, params, *, progress):
        self.asked += [(list(ids), params) for ids in prompts]
        return [Generation(list(ids), [Sample(self.text, [1, 2], None, self.finish)]) for ids in prompts]


def test_questions_are_answered_after_thinking_by_samples_whose_end_is_put_back():
    backend = _Echo("so </think> <answer>7")
    answerer = Answerer(backend=backend, codec=BYTES, context_length=1_024).sampling(temperature=1.0, seed=5)
    questions = [{"question": "3+4?", "answer": "7"}, {"question": "3+5?", "answer": "8"}]
    result = evaluate_reasoning(
        questions, reward=reward_each(r1_zero_reward_fn), generate=answerer.generate, name="sums", max_new_tokens=9
    )
    assert result.metrics["accuracy"] == 0.5 and result.metrics["categories"]["(1,1)"]["count"] == 1
    assert result.rows[0]["output"] == "so </think> <answer>7</answer>"
    ids, params = backend.asked[0]
    assert BYTES.decode(ids) == result.rows[0]["prompt"]
    wanted = (1, 1.0, 1.0, 0, 5, 0, 9, ("</answer>",))
    assert wanted == (
        *(params.n, params.temperature, params.top_p, params.top_k, params.seed),
        *(params.min_tokens, params.max_tokens, params.stop),
    )


def test_what_a_tokenizer_puts_before_texts_stays_there_also_where_a_prompt_is_cut():
    backend = _Echo("x")
    answerer = Answerer(backend=backend, codec=HuggingFaceCodec(TheirLetters()), context_length=10)
    short, long = answerer.generate(["abc", "abcdefghij"], max_new_tokens=6, stop=())
    a, b, c, h, i, j = Letters().encode("abchij")
    assert [ids for ids, _ in backend.asked] == [[BOS, a, b, c], [BOS, h, i, j]]
    assert not short.prompt_truncated and long.prompt_truncated


def test_continuations_are_scored_by_the_model_or_not_at_all(checkpoint):
    pairs = [("2+2=", "4"), ("2+2=", "5")]
    with open_answerer(checkpoint) as answerer:
        assert answerer.choose(pairs) == continuation_logprobs(checkpoint.model, BYTES, pairs)
        without = Answerer(backend=answerer.backend, codec=BYTES, context_length=48)
    with pytest.raises(ValueError, match="does not score continuations"):
        without.choose(pairs)


def test_a_special_token_before_each_text_comes_before_the_prompt_alone():
    torch.manual_seed(0)
    shape = ModelConfig(
        vocab_size=Letters.vocab_size, context_length=24, d_model=16, num_layers=1, num_heads=2, d_ff=32
    )
    model, theirs = TransformerLM(shape).eval(), TheirLetters()
    answer, prompt = theirs.encode("bc", add_special_tokens=False), theirs.encode("a is ")
    assert prompt[0] == BOS and BOS not in answer
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt + answer]))[0].log_softmax(-1)
    expected = sum(float(logprobs[len(prompt) - 1 + place, token]) for place, token in enumerate(answer))
    (scored,) = continuation_logprobs(model, HuggingFaceCodec(theirs), [("a is ", "bc")])
    assert scored == pytest.approx(expected, abs=1e-5)


def test_no_room_for_a_prompt_and_no_such_engine(checkpoint):
    with open_answerer(checkpoint) as answerer, pytest.raises(ValueError, match="leaves no room for a prompt"):
        answerer.generate(PROMPTS, max_new_tokens=48, stop=())
    with (
        pytest.raises(ValueError, match="engine is ours or vllm, got 'theirs'"),
        open_answerer(checkpoint, engine="theirs"),
    ):
        pass


def test_vllm_gets_the_model_as_a_checkpoint_that_transformers_reads(checkpoint, monkeypatch):
    """vLLM itself is tested in tests/generate; here, what it is started with and asked."""
    import transformers

    started = {}

    class Started:
        def generate(self, prompts, params, *, progress):
            started["prompts"], started["params"] = prompts, params
            return [Generation(list(ids), [Sample("four", [1], None, "stop")]) for ids in prompts]

        def close(self):
            started["closed"] = True

    def start(folder, **options):
        started["model"] = transformers.AutoModelForCausalLM.from_pretrained(folder)
        started["options"] = options
        return Started()

    monkeypatch.setattr(generators, "require_vllm", lambda: None)
    monkeypatch.setattr(generators.VllmEngine, "start", start)
    with open_answerer(checkpoint, engine="vllm") as answerer:
        (answer,) = answerer.generate(["2+2="], max_new_tokens=5, stop=("#",))
    assert (answer.text, answer.finish, answerer.model) == ("four", "stop", None)
    assert started["prompts"] == [BYTES.encode("2+2=")] and started["params"].stop == ("#",)
    assert started["params"].temperature == 0 and started["options"]["max_model_len"] == 48
    assert started["options"]["dtype"] == "float32" and started["options"]["own_process"] and started["closed"]
    ids = torch.tensor([BYTES.encode("2+2=")])
    with torch.no_grad():
        torch.testing.assert_close(started["model"](ids).logits, checkpoint.model(ids), atol=1e-4, rtol=1e-4)


@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_and_our_engine_give_the_same_greedy_answers(tmp_path):
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=257, context_length=64, d_model=64, num_layers=2, num_heads=2, d_ff=128)
    # Of the size that attention kernels take; the vocabulary has all bytes, as transformers' tokenizers want.
    save_policy(TransformerLM(shape), ALL_BYTES, tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    with open_answerer(checkpoint) as answerer:
        ours = answerer.generate(PROMPTS[:2], max_new_tokens=12, stop=())
    with open_answerer(checkpoint, engine="vllm") as answerer:
        theirs = answerer.generate(PROMPTS[:2], max_new_tokens=12, stop=())
        assert multiprocessing.active_children()
    assert not multiprocessing.active_children()  # and their memory is free
    # Bytes of a character that is cut off at the end are shown by ours alone.
    assert [each.text.rstrip("\ufffd") for each in theirs] == [each.text.rstrip("\ufffd") for each in ours]
    assert [(each.finish, each.prompt_truncated) for each in theirs] == [("length", False), ("length", True)]
