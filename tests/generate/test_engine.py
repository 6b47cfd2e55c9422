"""Batched, cached, padded generation equals the plain loop; log-probabilities equal a full pass."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cs336.generate import engine
from cs336.generate.cache import Columns, PreallocatedCache
from cs336.generate.engine import continuation_logprobs, generate, stream
from cs336.generate.sampling import Sampling, next_token_probabilities, uniforms_of
from tests.generate.toy import Characters, Pieces, letters_model, pieces_model


@pytest.fixture(scope="module")
def model():
    return letters_model()


@pytest.fixture(scope="module")
def bytes_model():
    return pieces_model()


def plain_loop(model, tokenizer, prompt, number, *, tokens, window, seed=0, **sampling):
    """The definition: no cache, no batch, no padding; one token at a time from the last `window` of them."""
    ids = tokenizer.encode(prompt)
    start = len(ids)
    for place in uniforms_of(seed, number, tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids[-window:]]))[0, -1]
        if sampling:
            kept = next_token_probabilities(logits, **sampling).tolist()
            order = sorted(range(len(kept)), key=lambda i: (-kept[i], i)) if len(sampling) > 1 else range(len(kept))
            total = 0.0
            for token in order:
                total += kept[token]
                if place * sum(kept) < total:
                    break
        else:
            token = int(logits.argmax())
        ids.append(token)
        if token == tokenizer.end_of_text_id:
            return tokenizer.decode(ids[start:-1]), "end"
    return tokenizer.decode(ids[start:]), "length"


PROMPTS = ["hello", "a", "themodelsees", "z" * 60]


def test_greedy_batches_equal_the_plain_loop(model):
    completions = generate(model, Characters(), PROMPTS, max_new_tokens=12)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        ids = Characters().encode(prompt)[-20:]
        start = len(ids)
        while len(ids) < start + 12 and (len(ids) == start or ids[-1] != 0):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert completion.text == Characters().decode([i for i in ids[start:] if i])
        assert completion.finish == ("end" if ids[-1] == 0 else "length")
        assert completion.prompt_truncated == (len(prompt) > 20)


def test_samples_do_not_depend_on_the_batch(model):
    options = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.9, "seed": 5}
    together = generate(model, Characters(), PROMPTS, **options)
    alone = generate(model, Characters(), PROMPTS, batch_size=1, **options)
    assert together == alone
    assert together != generate(model, Characters(), PROMPTS, **{**options, "seed": 6})


SAMPLINGS = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 1.0, "top_k": 9, "top_p": 0.9},
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_batches_equal_the_plain_loop_also_when_the_window_moves(model, sampling):
    """The handout's rule: the model sees the last `context_length` tokens."""
    prompts = ["hello", "a", "themodelsees", "z" * 60, "y" * 32]
    completions = generate(model, Characters(), prompts, max_new_tokens=40, overflow="crop", seed=7, **sampling)
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        expected = plain_loop(model, Characters(), prompt, number, tokens=40, window=32, seed=7, **sampling)
        assert (completion.text, completion.finish) == expected
        assert completion.prompt_truncated == (len(prompt) > 32)
        assert completion.num_prompt_tokens == min(len(prompt), 32)
    assert max(len(prompt) + done.num_tokens for prompt, done in zip(prompts, completions, strict=True)) > 40


def test_the_context_may_be_where_a_text_stops(model):
    completions = generate(model, Characters(), ["hello", "z" * 60, "abc"], max_new_tokens=28, overflow="stop")
    for prompt, completion in zip(["hello", "z" * 31, "abc"], completions, strict=True):
        room = 32 - len(prompt)
        text, finish = plain_loop(model, Characters(), prompt, 0, tokens=min(room, 28), window=32)
        assert completion.text == text
        assert completion.finish == (finish if finish == "end" or room >= 28 else "context")
    assert [completion.prompt_truncated for completion in completions] == [False, True, False]


def test_a_longer_run_begins_with_the_shorter_one(model):
    options = {"temperature": 1.0, "seed": 2, "overflow": "crop"}
    short = generate(model, Characters(), PROMPTS, max_new_tokens=6, **options)
    long = generate(model, Characters(), PROMPTS, max_new_tokens=12, **options)
    for few, many in zip(short, long, strict=True):
        assert many.text.startswith(few.text) and (few.finish == "end" or many.num_tokens > few.num_tokens)


def test_equal_prompts_are_different_samples(model):
    texts = [each.text for each in generate(model, Characters(), ["a"] * 8, max_new_tokens=12, temperature=1.0)]
    assert len(set(texts)) > 4
    assert len({each.text for each in generate(model, Characters(), ["a"] * 8, max_new_tokens=12)}) == 1


def test_a_long_prompt_read_in_parts_is_the_same_prompt(model, monkeypatch):
    whole = generate(model, Characters(), PROMPTS, max_new_tokens=12)
    monkeypatch.setattr(engine, "_PREFILL_TOKENS", 12)
    assert generate(model, Characters(), PROMPTS, max_new_tokens=12) == whole


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_cached_logits_equal_uncached_ones_however_the_text_is_cut(model, data):
    ids = torch.randint(27, (2, 32), generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    edges = sorted({0, 32, *data.draw(st.lists(st.integers(1, 31), max_size=6))})
    columns = Columns(capacity=data.draw(st.integers(32, 40)), places=torch.arange(0), num_visible=0)
    caches = [PreallocatedCache(columns) for _ in model.layers]
    with torch.inference_mode():
        parts = []
        for start, end in pairwise(edges):
            columns.places, columns.num_visible = torch.arange(start, end), end
            positions = columns.places.expand(2, -1)
            parts.append(model(ids[:, start:end], token_positions=positions, caches=caches))
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), atol=1e-5, rtol=1e-5)


def test_a_stop_string_ends_the_text_before_it(model):
    free = generate(model, Characters(), ["hello"], max_new_tokens=8)[0]
    stopped = generate(model, Characters(), ["hello"], max_new_tokens=8, stop=[free.text[2:4]])[0]
    assert stopped.finish == "stop" and stopped.text == free.text[: free.text.index(free.text[2:4])]


def test_stop_strings_cut_every_row_of_a_batch_where_they_begin(bytes_model):
    """Rows end at different steps; the others go on undisturbed."""
    prompts = [f"prompt {'x' * (i % 7)}" for i in range(24)]
    options = {"max_new_tokens": 30, "temperature": 1.0, "seed": 1}
    free = generate(bytes_model, Pieces(), prompts, **options)
    stop = ["gfe", "dd", "ca", "b", "bgd", "€"]
    stopped = generate(bytes_model, Pieces(), prompts, stop=stop, **options)
    for before, after in zip(free, stopped, strict=True):
        ends = [before.text.find(string) + len(string) for string in stop if string in before.text]
        if not ends:
            assert after == before
            continue
        end = min(ends)
        start = min(end - len(string) for string in stop if before.text[:end].endswith(string))
        assert (after.text, after.finish) == (before.text[:start], "stop")
        assert after.num_tokens <= before.num_tokens
    assert 8 < sum(each.finish == "stop" for each in stopped) < 24
    assert stopped == generate(bytes_model, Pieces(), prompts, stop=stop, batch_size=5, **options)


def test_steps_of_fixed_shapes_equal_growing_ones(model):
    """What a GPU records and plays again, run step by step."""
    plan = engine._Plan(
        max_new_tokens=10, sampling=Sampling(temperature=1.0, top_p=0.9), stop=(), seed=4, overflow="share"
    )
    with torch.inference_mode():
        growing, fixed = (engine._Batch(model, plan.rows(model, Characters(), PROMPTS), plan) for _ in range(2))
        for _ in range(10):
            growing.write_token()
        fixed.write_token()
        fixed._columns.places, fixed._columns.num_visible = torch.tensor([fixed._width - 1]), fixed._columns.capacity
        for _ in range(9):
            fixed._step_with_fixed_shapes()
    assert growing.new_ids(0, 10).tolist() == fixed.new_ids(0, 10).tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("overflow", ["share", "crop", "stop"])
def test_a_gpu_writes_what_a_cpu_does(bytes_model, sampling, overflow):
    prompts = [f"prompt {'x' * (i % 7)}" for i in range(24)]
    options = {"max_new_tokens": 30 if overflow == "share" else 44, "seed": 6, "overflow": overflow, **sampling}
    on_gpu = copy.deepcopy(bytes_model).to("cuda")
    for stop in ([], ["gfe", "dd", "ca", "b", "bgd"]):
        expected = generate(bytes_model, Pieces(), prompts, stop=stop, **options)
        assert generate(on_gpu, Pieces(), prompts, stop=stop, **options) == expected


@pytest.mark.parametrize("stop", [[], ["ab", "gfe", "dd"]])
def test_the_streamed_pieces_are_the_text(bytes_model, stop):
    prompts = ["one", "another", "x" * 30, ""]
    options = {"max_new_tokens": 40, "temperature": 1.5, "stop": stop, "seed": 3, "overflow": "crop"}
    completions = generate(bytes_model, Pieces(), prompts, **options)
    pieces = [[] for _ in prompts]
    running = stream(bytes_model, Pieces(), prompts, **options)
    try:
        while True:
            number, piece = next(running)
            pieces[number].append(piece)
    except StopIteration as end:
        assert end.value == completions
    assert ["".join(each) for each in pieces] == [completion.text for completion in completions]
    assert min(len(each) for each in pieces) > 1


def test_the_consumer_of_a_stream_may_still_train(model):
    """Inference mode holds within the stream, not around who reads it."""
    for _ in stream(model, Characters(), ["hello"], max_new_tokens=3):
        assert not torch.is_inference_mode_enabled()
    assert list(stream(model, Characters(), [], max_new_tokens=3)) == []


def test_the_end_of_text_token_is_counted_and_not_shown(model):
    sure = copy.deepcopy(model)
    with torch.no_grad():
        sure.lm_head.weight.zero_()  # all tokens equal: argmax is 0, the end of a text
    completion = generate(sure, Characters(), ["hello"], max_new_tokens=8)[0]
    assert (completion.text, completion.finish, completion.num_tokens) == ("", "end", 1)


def test_damaged_weights_are_an_error_not_a_text(model):
    damaged = copy.deepcopy(model)
    with torch.no_grad():
        damaged.lm_head.weight[5, 0] = float("nan")
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="NaN or infinite"):
            generate(damaged, Characters(), ["hello"], max_new_tokens=8, temperature=temperature)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"max_new_tokens": 0}, "at least 1"),
        ({"overflow": "ignore"}, "share, crop, stop"),
        ({"temperature": -1}, "temperature"),
        ({"top_k": -2}, "top_k"),
        ({"top_p": 2}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"stop": [""]}, "empty"),
    ],
)
def test_settings_out_of_range_are_errors(model, bad, message):
    with pytest.raises(ValueError, match=message):
        generate(model, Characters(), ["a"], **{"max_new_tokens": 4, **bad})


def test_no_room_for_a_prompt_is_an_error(model):
    with pytest.raises(ValueError, match="no room"):
        generate(model, Characters(), ["a"], max_new_tokens=32)


def test_continuation_logprobs_equal_a_full_pass(model):
    pairs = [("hello", "abc"), ("a", "z"), ("thisisalong", "prompt")]
    actual = continuation_logprobs(model, Characters(), pairs)
    for (prompt, continuation), value in zip(pairs, actual, strict=True):
        ids = Characters().encode(prompt + continuation)
        logprobs = torch.log_softmax(model(torch.tensor([ids]))[0], dim=-1)
        places = range(len(prompt), len(ids))
        assert value == pytest.approx(sum(logprobs[i - 1, ids[i]].item() for i in places), abs=1e-4)
