"""The engine with slots that are filled again equals one sequence at a time, without cache, batch or padding."""

import contextlib
import copy
from dataclasses import replace

import pytest
import torch

from cs336.generate import continuous, slots
from cs336.generate.backend import HuggingFaceCodec, SamplingParams
from cs336.generate.continuous import Engine
from cs336.generate.sampling import next_token_probabilities, uniforms_of
from cs336.generate.sampling import sample as draw
from cs336.generate.weight_sync import check_logprobs, sync_weights
from cs336.model.huggingface import huggingface_weights, load_huggingface
from cs336.model.transformer import ModelConfig, TransformerLM
from tests.generate.toy import Characters, Pieces, letters_model, pieces_model

PROMPTS = ["hello", "a", "themodelsees", "zzz", "hello", "qu"]


@pytest.fixture(scope="module")
def model():
    return letters_model(num_kv_heads=2)


@pytest.fixture(scope="module")
def bytes_model():
    return pieces_model()


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Shapes that never change, widths of powers of two, and a host that learns of tokens a round later."""
    monkeypatch.setattr(slots, "_is_static", lambda device: True)
    monkeypatch.setattr(slots, "_FEWEST_RECORDED", 2)
    monkeypatch.setattr(continuous, "_STEPS_BETWEEN_LOOKS", 3)


def one_by_one(model, tokenizer, prompt, number, sample_number, params):
    """The definition; returns text, ids, log-probabilities and how it ended."""
    prompt_ids = tokenizer.encode(prompt)
    ids, logprobs, context = [], [], model.config.context_length
    limit = min(params.max_tokens, context - len(prompt_ids))
    text = ""
    for place in uniforms_of(params.seed, number, limit, sample_number=sample_number):
        with torch.no_grad():
            logits = model(torch.tensor([prompt_ids + ids]))[0, -1]
        allowed = logits.clone()
        if len(ids) < params.min_tokens:
            allowed[tokenizer.end_of_text_id] = float("-inf")
        if params.temperature == 0:
            token = int(allowed.argmax())
        else:
            settings = {"temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p}
            kept = next_token_probabilities(allowed, **settings).double()
            cut = params.top_k or params.top_p < 1
            order = kept.sort(descending=True, stable=True).indices if cut else torch.arange(len(kept))
            ends = kept[order].cumsum(0)
            token = int(order[(ends <= place * ends[-1]).sum()])
        ids.append(token)
        logprobs.append(float(torch.log_softmax(logits, -1)[token]))
        if token == tokenizer.end_of_text_id:
            return text, ids, logprobs, "end"
        before, text = text, tokenizer.decode(ids)
        found = [
            (start + len(string), start)
            for string in params.stop
            for start in range(len(text))
            if text.startswith(string, start) and start + len(string) > len(before)
        ]
        if found and len(ids) > params.min_tokens:
            end, start = min(found)
            return text[: end if params.include_stop_str_in_output else start], ids, logprobs, "stop"
    return text, ids, logprobs, "length"


def assert_equals_one_by_one(engine, prompts, params):
    generations = engine.generate(prompts, params)
    for number, (prompt, generation) in enumerate(zip(prompts, generations, strict=True)):
        assert generation.prompt_ids == engine.tokenizer.encode(prompt)
        assert len(generation.samples) == params.n
        for sample_number, sample in enumerate(generation.samples):
            text, ids, logprobs, finish = one_by_one(
                engine.model, engine.tokenizer, prompt, number, sample_number, params
            )
            assert (sample.text, sample.token_ids, sample.finish) == (text, ids, finish)
            if params.logprobs:
                assert sample.logprobs == pytest.approx(logprobs, abs=1e-4)
            else:
                assert sample.logprobs is None
    return generations


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_kv_heads": 2},
        {"num_kv_heads": 1, "qk_norm": True, "rope_layout": "half", "tied": True},
        {"positions": "learned", "norm_kind": "layer", "feed_forward": "gelu"},
        {"positions": "none", "norm": "post"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel", ["reference", "fused"])
def test_greedy_equals_one_sequence_at_a_time(settings, kernel):
    engine = Engine(letters_model(**settings).use_attention_kernel(kernel), Characters(), num_slots=3)
    assert_equals_one_by_one(engine, PROMPTS, SamplingParams(temperature=0, max_tokens=15, logprobs=True))


SAMPLINGS = [
    {},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8, "min_tokens": 6},
    {"top_k": 9, "top_p": 0.9, "max_tokens": 40},  # beyond the context of 32
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("num_slots", [1, 4, 0])
def test_samples_equal_one_sequence_at_a_time(model, sampling, num_slots):
    engine = Engine(model, Characters(), num_slots=num_slots)
    params = SamplingParams(**{"n": 8, "max_tokens": 12, "seed": 5, "logprobs": True, **sampling})
    generations = assert_equals_one_by_one(engine, PROMPTS, params)
    lengths = {len(sample.token_ids) for generation in generations for sample in generation.samples}
    assert len(lengths) > 2  # so that slots became free at different times


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("stop", [(), ("ab", "gfe", "dd", "c")])
def test_the_way_of_a_gpu_gives_the_same(bytes_model, model, sampling, stop, as_on_a_gpu):
    params = SamplingParams(**{"n": 3, "max_tokens": 14, "seed": 2, "logprobs": True, "stop": stop, **sampling})
    assert_equals_one_by_one(Engine(bytes_model, Pieces(), num_slots=4), ["one", "another", "x"], params)
    assert_equals_one_by_one(Engine(model, Characters(), num_slots=7), PROMPTS, params)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the kernels do not run on CPU tensors")
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0}, {"temperature": 1.3, "min_tokens": 4}, {"top_k": 5}])
def test_our_kernels_give_the_same(monkeypatch, sampling):
    """In Triton's interpreter: attention that reads no further than a sequence is long, rotations, norms, gates, and
    the choice of tokens, but for top-k.
    """
    monkeypatch.setattr(slots, "has_decode_kernel", lambda device, head_dim: True)
    monkeypatch.setattr(slots, "_chooses_by_kernel", lambda device: True)
    wide = letters_model(d_model=64, num_kv_heads=2)
    params = SamplingParams(**{"n": 2, "max_tokens": 5, "seed": 3, "logprobs": True, **sampling})
    plain = Engine(copy.deepcopy(wide), Characters()).generate(PROMPTS[:2], params)
    fused = Engine(wide.fuse(), Characters(), num_slots=3).generate(PROMPTS[:2], params)
    for one, other in zip(plain, fused, strict=True):
        for mine, theirs in zip(one.samples, other.samples, strict=True):
            assert mine.token_ids == theirs.token_ids
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_generation_runs_in_pytorchs_usual_forms_within_a_deterministic_run(bytes_model, is_damaged):
    """Writes of the deterministic form copy the whole cache: on a GPU the same texts took six times as long."""
    model, seen = copy.deepcopy(bytes_model), []
    model.ln_final.register_forward_pre_hook(lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()))
    if is_damaged:
        torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(ValueError, match="NaN") if is_damaged else contextlib.nullcontext():
            Engine(model, Pieces()).generate(["a", "b"], SamplingParams(max_tokens=4))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen
    assert not any(seen)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("fused", [True, False])
def test_a_gpu_writes_what_a_cpu_does(bytes_model, sampling, fused):
    """By recorded steps; with our attention where heads are wide enough, and without.

    A sample may part from the CPU's where its place on the line, or the nucleus' end, is within rounding of a token's.
    """
    model, codec = (letters_model(d_model=64, num_kv_heads=2), Characters()) if fused else (bytes_model, Pieces())
    stop = ("ab", "c") if fused else ("gfe", "dd")
    params = SamplingParams(**{"n": 3, "max_tokens": 20, "seed": 4, "logprobs": True, "stop": stop, **sampling})
    prompts = [f"{letter}{'x' * (i % 7)}" for i, letter in enumerate("abcdefghijklmnopqrstuvwx")]
    expected = Engine(model, codec).generate(prompts, params)
    on_gpu = Engine(copy.deepcopy(model).to("cuda").fuse(fused), codec, num_slots=16)
    for _ in range(2):  # recorded, and played again
        num_parted = 0
        for number, (mine, theirs) in enumerate(zip(on_gpu.generate(prompts, params), expected, strict=True)):
            for sample_number, (sample, other) in enumerate(zip(mine.samples, theirs.samples, strict=True)):
                pairs = enumerate(zip(sample.token_ids, other.token_ids, strict=False))
                shared = next((place for place, (one, two) in pairs if one != two), None)
                if shared is None:
                    assert (sample.text, sample.token_ids) == (other.text, other.token_ids)
                else:
                    num_parted += 1
                    uniform = uniforms_of(params.seed, number, shared + 1, sample_number=sample_number)[-1]
                    ids = mine.prompt_ids + other.token_ids[:shared]
                    assert sample.token_ids[shared] in within_rounding(model, ids, uniform, params.sampling)
                assert sample.logprobs[:shared] == pytest.approx(other.logprobs[:shared], abs=1e-3)
        assert num_parted <= 2  # of 72


def within_rounding(model, ids, uniform, sampling):
    """What is drawn next if the random number or the nucleus is off by what fp32 leaves uncertain."""
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[:, -1]
    nuclei = {sampling.top_p} if sampling.top_p == 1 else {sampling.top_p + off for off in (-1e-6, 0, 1e-6)}
    places = [torch.tensor([min(max(uniform + off, 0), 1 - 1e-9)], dtype=torch.float64) for off in (-1e-6, 0, 1e-6)]
    return {int(draw(logits, place, replace(sampling, top_p=top_p))) for place in places for top_p in nuclei}


@pytest.mark.gpu
@needs_gpu
def test_a_gpus_memory_is_free_while_the_engine_sleeps():
    model = letters_model(d_model=1_024, num_layers=8, num_heads=16).to("cuda")
    weights = [(name, weight.clone()) for name, weight in huggingface_weights(model.to("cpu"))]
    model = model.to("cuda")
    engine, params = Engine(model, Characters()), SamplingParams(n=64, max_tokens=6)
    expected = engine.generate(PROMPTS, params)
    held = torch.cuda.memory_allocated()
    num_bytes = sum(weight.nbytes for weight in model.parameters())
    for level in (1, 2, 1):
        engine.sleep(level)
        assert held - torch.cuda.memory_allocated() > num_bytes
        engine.wake()
        if level == 2:
            engine.load_weights(weights)
        assert engine.generate(PROMPTS, params) == expected


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_trainer_on_one_gpu_and_the_engine_on_another():
    trainer = letters_model(d_model=64, num_kv_heads=2).to("cuda:0")
    engine = Engine(copy.deepcopy(trainer).to("cuda:1").fuse(), Characters())
    with torch.no_grad():
        trainer.lm_head.weight *= 1.5
    sync_weights(trainer, engine)
    assert check_logprobs(trainer, engine, PROMPTS).max_logprob_difference < 1e-3
    assert torch.cuda.current_device() == 0


def test_progress_begins_before_the_first_sample_is_done_and_ends_with_the_last(model):
    seen = []

    def watched(items, *, total=None, unit="", label=""):
        seen.append("begins")
        for item in items:
            yield item
            seen.append(item)

    engine = Engine(model, Characters(), num_slots=2)
    engine.generate(PROMPTS, SamplingParams(n=2, max_tokens=3), progress=watched)
    assert seen == ["begins", *range(2 * len(PROMPTS))]
    seen.clear()

    def stops(items, *, total=None, unit="", label=""):
        seen.append("begins")
        yield from items

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(continuous.Engine, "_run", lambda *_: 1 / 0)
        engine.generate(PROMPTS, SamplingParams(max_tokens=3), progress=stops)
    assert seen == ["begins"]


@pytest.mark.parametrize("room", [5, 1_000])
def test_a_small_batch_leaves_no_small_engine_behind(model, room, monkeypatch):
    """A large batch after it has as many slots as one that comes first: what memory allows, or all that it fills."""
    one_slot = slots.bytes_of_slot(model, model.config.context_length)
    monkeypatch.setattr(continuous, "_free_bytes", lambda device: (room + 0.5) * one_slot / 0.8)
    params, made, make = SamplingParams(max_tokens=64), [], slots.Slots.__init__
    monkeypatch.setattr(
        slots.Slots,
        "__init__",
        lambda self, *rest, **sizes: made.append(sizes["num_slots"]) or make(self, *rest, **sizes),
    )
    engine = Engine(model, Characters(), num_slots=16)
    for prompts in (["a"], ["ab"] * 40, ["ab"] * 40):
        engine.generate(prompts, params)
    assert made == [1, min(16, room)]


@pytest.mark.parametrize("num_slots", [0, 3, 16])
def test_steps_have_the_same_width_whatever_was_generated_before(model, num_slots, as_on_a_gpu, monkeypatch):
    """Products of another shape round otherwise; a resumed run must not notice that it was resumed."""
    widths, step = [], slots.Slots.step
    monkeypatch.setattr(slots.Slots, "step", lambda self, width: widths.append(width) or step(self, width))
    params = SamplingParams(max_tokens=9, seed=2)
    used, fresh = (Engine(model, Characters(), num_slots=num_slots) for _ in range(2))
    used.generate(["ab"] * 40, params)
    used.reset_prefix_cache()
    used.generate(PROMPTS, params)
    before = len(widths)
    fresh.generate(PROMPTS, params)
    count = len(widths) - before
    assert widths[-count:] == widths[-2 * count : -count]
    assert count > 5


def test_sequences_that_have_ended_stand_still_beside_long_ones(bytes_model, as_on_a_gpu):
    """On a GPU they are computed on until their slot is taken, here for 40 steps."""
    params = SamplingParams(max_tokens=46, min_tokens=40, seed=3, logprobs=True)
    generations = assert_equals_one_by_one(Engine(bytes_model, Pieces(), num_slots=8), ["a", "b" * 40, "c"], params)
    lengths = [len(generation.samples[0].token_ids) for generation in generations]
    assert lengths[1] < 9 and max(lengths) > 30


def test_a_prompt_gets_the_same_alone_as_among_others(model):
    params = SamplingParams(n=3, max_tokens=12, seed=9)
    together = Engine(model, Characters(), num_slots=4).generate(PROMPTS, params)
    for number, prompt in enumerate(PROMPTS):
        assert Engine(model, Characters()).generate([prompt], params, numbers=[number]) == [together[number]]
    assert together[0] != together[4]  # equal prompts, other numbers
    assert len({sample.text for sample in together[0].samples}) == 3
    assert together != Engine(model, Characters()).generate(PROMPTS, SamplingParams(n=3, max_tokens=12, seed=8))


def test_ids_are_as_good_as_text(model):
    engine, params = Engine(model, Characters()), SamplingParams(max_tokens=8)
    assert engine.generate([Characters().encode(each) for each in PROMPTS], params) == engine.generate(PROMPTS, params)
    assert engine.generate([], params) == []


def test_a_free_slot_is_filled_before_the_next_step_in_the_order_of_the_queue(model, monkeypatch):
    seated, widths = [], []
    seat, step = slots.Slots.seat, slots.Slots.step
    prompts = [f"{letter}x" for letter in "abcdefghijkl"]

    def watched_seat(self, places, prefixes, which, **settings):
        seated.append(list(places))
        seat(self, places, prefixes, which, **settings)

    def watched_step(self, num_rows):
        widths.append((num_rows, sum(map(len, seated))))
        step(self, num_rows)

    monkeypatch.setattr(slots.Slots, "seat", watched_seat)
    monkeypatch.setattr(slots.Slots, "step", watched_step)
    engine = Engine(model, Characters(), num_slots=3)
    generations = engine.generate(prompts, SamplingParams(max_tokens=20, seed=1))
    lengths = [len(generation.samples[0].token_ids) for generation in generations]

    # By hand: each step gives every sitting sequence one token; the first comes with its seat.
    queue, sitting, expected = list(lengths), [], []
    while queue or sitting:
        while queue and len(sitting) < 3:
            sitting.append(queue.pop(0) - 1)
        expected.append((len(sitting), len(lengths) - len(queue)))
        sitting = [left - 1 for left in sitting if left > 1]
    assert widths == expected
    assert len(set(lengths)) > 3


def test_a_prompt_is_read_once_for_all_its_samples(model, monkeypatch):
    read = []
    read_prompts = continuous.read_prompts
    monkeypatch.setattr(continuous, "read_prompts", lambda m, prompts: read.extend(prompts) or read_prompts(m, prompts))
    engine = Engine(model, Characters(), num_slots=2)
    params = SamplingParams(n=5, max_tokens=6)
    first = engine.generate(PROMPTS, params)
    assert sorted(read) == sorted({tuple(Characters().encode(prompt)) for prompt in PROMPTS})
    assert engine.generate(PROMPTS, params) == first
    assert len(read) == 5
    engine.reset_prefix_cache()
    assert engine.generate(PROMPTS, params) == first
    assert len(read) == 10
    # Too little room to remember: read again for later samples, with the same result.
    assert Engine(model, Characters(), num_slots=2, prefix_cache_tokens=12).generate(PROMPTS, params) == first
    assert len(read) > 15


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("num_slots", [5, 32])
def test_stop_strings_end_texts_wherever_tokens_are_cut(bytes_model, kept, num_slots):
    prompts = [f"prompt {'x' * (i % 7)}" for i in range(24)]
    stop = ("gfe", "dd", "ca", "b", "bgd", "€")
    params = SamplingParams(max_tokens=30, seed=1, stop=stop, include_stop_str_in_output=kept, min_tokens=3)
    generations = assert_equals_one_by_one(Engine(bytes_model, Pieces(), num_slots=num_slots), prompts, params)
    samples = [generation.samples[0] for generation in generations]
    stopped = [sample for sample in samples if sample.finish == "stop"]
    assert 8 < len(stopped) < 24
    assert any(len(Pieces.vocab[sample.token_ids[-1]]) == 2 for sample in stopped)  # within a token
    assert all(sample.text.endswith(stop) == kept or not kept for sample in stopped)
    assert all(len(sample.token_ids) > 3 for sample in stopped)


def test_no_text_ends_before_its_fewest_tokens():
    sure = letters_model()
    with torch.no_grad():
        sure.lm_head.weight.zero_()  # all tokens equal: argmax is 0, the end of a text
    engine = Engine(sure, Characters())
    for fewest in (0, 4):
        params = SamplingParams(temperature=0, max_tokens=8, min_tokens=fewest, logprobs=True)
        sample = engine.generate(["hello"], params)[0].samples[0]
        assert (sample.token_ids, sample.finish) == ([1] * fewest + [0], "end")
        assert sample.logprobs == pytest.approx([-torch.log(torch.tensor(27.0)).item()] * (fewest + 1))


def test_several_tokens_may_end_a_text(model):
    params = SamplingParams(temperature=0, max_tokens=12)
    free = Engine(model, Characters()).generate(["hello"], params)[0].samples[0]
    ended = Engine(model, Characters(), end_ids=[0, free.token_ids[3]]).generate(["hello"], params)[0].samples[0]
    assert ended.token_ids == free.token_ids[: free.token_ids.index(free.token_ids[3]) + 1]
    assert (ended.finish, ended.text) == ("end", Characters().decode(ended.token_ids[:-1]))


@pytest.mark.parametrize("family", ["Qwen2", "Llama"])
def test_imported_checkpoints_write_what_transformers_does(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=40,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = Engine(load_huggingface(tmp_path), Characters(), num_slots=2)
    prompts = [[5, 9, 2], [7], [3, 3, 8, 1, 60], [11, 12]]
    for prompt, generation in zip(
        prompts, ours.generate(prompts, SamplingParams(temperature=0, max_tokens=20, logprobs=True)), strict=True
    ):
        with torch.no_grad():
            ids = theirs.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0]
            logprobs = torch.log_softmax(theirs(ids[None]).logits[0], -1)
        sample = generation.samples[0]
        assert sample.token_ids == ids[len(prompt) :].tolist()
        expected = [logprobs[i - 1, ids[i]].item() for i in range(len(prompt), len(ids))]
        assert sample.logprobs == pytest.approx(expected, abs=1e-4)


def test_sleep_gives_memory_back_and_wake_takes_it_again(model):
    engine, params = Engine(copy.deepcopy(model), Characters()), SamplingParams(max_tokens=6)
    expected = engine.generate(PROMPTS, params)
    weights = [(name, weight.clone()) for name, weight in huggingface_weights(engine.model)]
    for _ in range(2):
        engine.sleep()
        assert sum(weight.untyped_storage().nbytes() for weight in engine.model.parameters()) == 0
        with pytest.raises(ValueError, match="asleep"):
            engine.generate(PROMPTS, params)
        with pytest.raises(ValueError, match="asleep"):
            engine.load_weights(weights)
        engine.wake()
        assert engine.generate(PROMPTS, params) == expected
    engine.sleep(2)
    engine.wake()
    with pytest.raises(ValueError, match="load_weights"):
        engine.generate(PROMPTS, params)
    engine.load_weights(weights)
    assert engine.generate(PROMPTS, params) == expected
    with pytest.raises(ValueError, match="level"):
        engine.sleep(3)


def test_a_trainers_own_weights_stay_when_the_engine_sleeps(model):
    engine = Engine(model, Characters(), owns_weights=False)
    before = engine.generate(PROMPTS, SamplingParams(max_tokens=6))
    for level in (1, 2):
        engine.sleep(level)
        assert model(torch.tensor([[1, 2]])).isfinite().all()
        engine.wake()
        assert engine.generate(PROMPTS, SamplingParams(max_tokens=6)) == before


def test_a_model_in_training_is_run_without_dropout_and_goes_on_training(model):
    shared = TransformerLM(ModelConfig(**vars(model.config) | {"dropout": 0.5})).train()
    shared.load_state_dict(model.state_dict())
    params = SamplingParams(max_tokens=6)
    engine = Engine(shared, Characters())
    assert engine.generate(PROMPTS, params) == Engine(model, Characters()).generate(PROMPTS, params)
    assert shared.training and not torch.is_inference_mode_enabled()


def test_damaged_weights_are_an_error_not_a_text(model):
    damaged = copy.deepcopy(model)
    with torch.no_grad():
        damaged.lm_head.weight[5, 0] = float("nan")
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="NaN or infinite"):
            Engine(damaged, Characters()).generate(["hello"], SamplingParams(temperature=temperature))
    engine, params = Engine(copy.deepcopy(model), Characters()), SamplingParams(max_tokens=12)
    expected = engine.generate(PROMPTS, params)
    with torch.no_grad():
        engine.model.layers[0].attn.v_proj.weight.fill_(float("nan"))
    engine.reset_prefix_cache()
    with pytest.raises(ValueError, match="NaN or infinite"):
        engine.generate(["themodelseesthemodelsees"], params)
    engine.load_weights(huggingface_weights(model))
    assert engine.generate(PROMPTS, params) == expected  # nothing of the damage is left


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"n": 0}, "n and max_tokens"),
        ({"max_tokens": 0}, "n and max_tokens"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_k": -2}, "top_k"),
        ({"top_p": 2}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"stop": ("",)}, "empty"),
        ({"stop": "</answer>"}, "tuple"),
    ],
)
def test_settings_out_of_range_are_errors(bad, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**bad)


def test_prompts_that_fill_the_context_are_errors(model):
    engine = Engine(model, Characters())
    assert len(engine.generate(["a" * 31], SamplingParams())[0].samples[0].token_ids) == 1
    with pytest.raises(ValueError, match="no room"):
        engine.generate(["a" * 32], SamplingParams())
    with pytest.raises(ValueError, match="2 numbers for 1"):
        engine.generate(["a"], SamplingParams(), numbers=[1, 2])


def test_a_tokenizer_of_transformers_is_a_codec():
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    vocab = {"<end>": 0, "<s>": 1, **{letter: i + 2 for i, letter in enumerate("abc")}}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    inner.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    inner.decoder = tokenizers.decoders.Fuse()
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", bos_token="<s>")
    codec = HuggingFaceCodec(theirs)
    assert codec.encode("abc") == [1, 2, 3, 4]
    assert codec.decode([1, 2, 4, 0]) == "ac"
    assert codec.end_of_text_id == 0
    theirs.eos_token = None
    with pytest.raises(ValueError, match="end-of-text"):
        HuggingFaceCodec(theirs)
