"""Our reader of fastText's models against fastText itself."""

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
import pytest
from numpy.typing import NDArray

from cs336.files import read_jsonl
from cs336.filters.fasttext_file import read_fasttext
from cs336.filters.fasttext_model import FastTextModel, huffman_tree

TOLERANCE = 1e-6  # of a probability; the package adds the same numbers in the same order
WORDS = [
    "the",
    "a",
    "Brücke",
    "мост",
    "桥在这里",
    "ponte",
    "y",
    "ß",
    "สะพาน",
    "🌉🌉",
    "don't",
    "x" * 40,
    "__label__",
    "1,000",
]
KINDS: dict[str, dict[str, Any]] = {
    "characters-hs": {"minn": 2, "maxn": 4, "loss": "hs"},
    "characters-from-one-and-bigrams": {"minn": 1, "maxn": 3, "wordNgrams": 2},
    "words": {},
    "trigrams": {"wordNgrams": 3, "bucket": 5_000},
    "few-buckets": {"minn": 3, "maxn": 3, "bucket": 7, "wordNgrams": 2},
    "quantised": {"wordNgrams": 2, "quantize": {}},
    "pruned-hs": {"minn": 2, "maxn": 4, "loss": "hs", "quantize": {"cutoff": 300, "qnorm": True, "retrain": True}},
    "pruned-bigrams": {"wordNgrams": 2, "dim": 7, "quantize": {"cutoff": 300, "dsub": 3}},
    "many-quantised-labels": {"num_labels": 300, "quantize": {"qout": True}},
}


def texts(seed: int, count: int) -> Iterator[str]:
    """Words of several scripts, between spaces and line breaks of all kinds."""
    generator = random.Random(seed)
    spaces = [" "] * 12 + ["\n", "\r\n", "\t", "\v", "\f", "\0", "\u2028", "\u2029", "\x85", "\x1c", "  \u00a0 ", ""]
    for _ in range(count):
        pieces = []
        for _ in range(generator.randrange(40)):
            word = generator.choice(WORDS)
            pieces.append(word if generator.random() < 0.7 else "".join(generator.choices("abcdefÅüжд語ไ\u0301", k=3)))
            pieces.append(generator.choice(spaces))
        yield "".join(pieces)


def line_of(text: str) -> str:
    """fastText takes a line: its line breaks become spaces, and what has no UTF-8 form a question mark."""
    return " ".join(text.splitlines()).encode(errors="replace").decode()


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[FastTextModel, Any]:
    """A small model as ours and as fastText's."""
    folder = tmp_path_factory.mktemp("model")
    options = {"dim": 10, "bucket": 1_000, **KINDS[request.param]}
    quantize, num_labels = options.pop("quantize", None), options.pop("num_labels", 5)
    generator = random.Random(0)
    lines = []
    for number, text in enumerate(texts(1, 1_500)):
        label = number % num_labels if generator.random() < 0.8 else 0
        own = " ".join(WORDS[(3 * label + n) % len(WORDS)] for n in range(3))
        lines.append(f"__label__{label} {own} {line_of(text)}")
    source = folder / "train.txt"
    source.write_text("".join(f"{line}\n" for line in lines))
    model = fasttext.train_supervised(input=str(source), epoch=5, thread=1, verbose=0, **options)
    if quantize is not None:
        model.quantize(input=str(source), thread=1, **quantize)
    model.save_model(str(folder / "m.bin"))
    return FastTextModel(folder / "m.bin"), fasttext.load_model(str(folder / "m.bin"))


def assert_agree(ours: FastTextModel, theirs: Any, text: str) -> None:
    labels, probabilities = theirs.predict(line_of(text), k=len(ours.labels))
    scores = ours.log_probabilities(text)
    if scores is None:
        assert labels == ()
        return
    expected = dict(zip(labels, probabilities, strict=True))
    found = dict(zip(ours.labels, np.exp(scores).tolist(), strict=True))
    assert found.keys() >= expected.keys()
    for label, probability in found.items():
        assert probability == pytest.approx(expected.get(label, 0.0), abs=TOLERANCE), (label, text[:80])
    if len(labels) > 1 and probabilities[0] - probabilities[1] > TOLERANCE:
        assert ours.labels[int(scores.argmax())] == labels[0]


def test_all_probabilities_are_fasttexts_on_text_of_any_kind(pair):
    assert_agree(*pair, "")
    for text in texts(2, 400):
        assert_agree(*pair, text)


@pytest.mark.parametrize(
    "text",
    [
        "the </s> ponte ponte",  # ends the line
        "</s>",
        "__label__0 the __label__none ponte",  # labels, known and not, are no words
        "__label__",
        "\ud800 the \udfff",
        "\0\0the\0ponte",
        "the\u00a0ponte",  # this space divides no words
        "\u2028the\u2029",
        "\u00c2 \u0085 â\u20ac",  # bytes that begin as a line break's do
        "<the> > < <>",  # the brackets that stand around a word
        "the " * 5_000,
        "桥" * 9_000,
    ],
)
def test_what_fasttext_treats_specially(pair, text):
    assert_agree(*pair, text)


@pytest.mark.parametrize("num_slots", [1, 4, 1 << 15])
def test_words_met_before_change_no_score(pair, num_slots, monkeypatch):
    ours, _ = pair
    all_texts = list(texts(3, 80))

    def scores(*, forget: bool) -> list[NDArray[np.float32] | None]:
        found = []
        for number, text in enumerate(all_texts):
            if forget or not number:
                seen = np.zeros(num_slots, np.uint64), np.zeros((num_slots, 16), np.int32)
                monkeypatch.setattr(ours, "_seen", seen)
            found.append(ours.log_probabilities(text))
        return found

    without, with_others_words = scores(forget=True), scores(forget=False)
    for cold, warm in zip(without, with_others_words, strict=True):
        assert (cold is None and warm is None) or np.array_equal(cold, warm)


def test_words_met_before_are_looked_up(pair):
    ours, _ = pair
    all_texts = list(texts(3, 80))
    before = _scores(ours, all_texts)
    has_characters = ours._settings[3] > 0  # a word alone is looked up as fast
    assert bool(ours._seen[0].any()) == has_characters
    rows = ours._seen[1][:, 0].copy()
    ours._seen[1][:, 0] = 0  # whoever looks a word up finds that it has no rows
    found = _scores(ours, all_texts)
    ours._seen[1][:, 0] = rows
    assert any(not np.array_equal(a, b) for a, b in zip(before, found, strict=True)) == has_characters


def _scores(model: FastTextModel, all_texts: list[str]) -> list[NDArray[np.float32] | None]:
    return [model.log_probabilities(text) for text in all_texts]


def test_lid_176_agrees_on_sentences_of_all_languages_and_on_pages_of_them(shared_data: Path):
    path = shared_data / "weights" / "lid.176.ftz"
    ours, theirs = FastTextModel(path), fasttext.load_model(str(path))
    by_language: dict[str, list[str]] = {}
    for row in read_jsonl(shared_data / "labelled" / "langid" / "dev" / "lingua_sentences.jsonl.gz"):
        by_language.setdefault(row["lang"], []).append(row["text"])
    assert len(by_language) > 60
    for sentences in by_language.values():
        for text in [*sentences[:10], "\n".join(sentences[:100])]:
            assert_agree(ours, theirs, text)
    assert_agree(ours, theirs, "\n\n".join(text for sentences in by_language.values() for text in sentences[:5]))


def test_a_large_model_is_mapped_and_not_copied(tmp_path: Path):
    (tmp_path / "train.txt").write_text("__label__a one two three\n__label__b four five six\n" * 50)
    options = {"dim": 50, "bucket": 100_000, "wordNgrams": 2, "epoch": 1, "thread": 1, "verbose": 0}
    fasttext.train_supervised(input=str(tmp_path / "train.txt"), **options).save_model(str(tmp_path / "m.bin"))
    size = (tmp_path / "m.bin").stat().st_size
    FastTextModel(tmp_path / "m.bin")  # compiles
    tracemalloc.start()
    try:
        model = FastTextModel(tmp_path / "m.bin")
        model.log_probabilities("one five")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size > 20_000_000 and peak < size / 4  # what is mapped is not traced


def test_the_tree_is_huffmans():
    # By hand: 1 and 2 are joined (node 4), then 3 with those 3 (5), then 7 with 6 (6, the root).
    tree = huffman_tree(np.array([7, 3, 2, 1]))
    assert tree.tolist() == [[-1, -1]] * 4 + [[3, 2], [4, 1], [5, 0]]


@pytest.mark.parametrize("quantize", [False, True])
def test_a_damaged_file_is_an_error(tmp_path: Path, quantize: bool):
    (tmp_path / "train.txt").write_text("".join(f"__label__{n % 2} w{n % 300} w{n % 5}\n" for n in range(600)))
    model = fasttext.train_supervised(input=str(tmp_path / "train.txt"), dim=4, bucket=50, minn=2, maxn=3, verbose=0)
    if quantize:
        model.quantize(input=str(tmp_path / "train.txt"), cutoff=280)
    model.save_model(str(tmp_path / "m.bin"))
    data = (tmp_path / "m.bin").read_bytes()
    read_fasttext(tmp_path / "m.bin")
    for size in [*range(0, 200, 7), *range(200, len(data), 211), len(data) - 1]:
        (tmp_path / "cut.bin").write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"truncated|announced|not|begins|codes"):
            read_fasttext(tmp_path / "cut.bin")


def test_another_loss_is_named(tmp_path: Path):
    (tmp_path / "train.txt").write_text("__label__a x\n__label__b y\n" * 50)
    options = {"dim": 4, "bucket": 50, "loss": "ova", "verbose": 0}
    fasttext.train_supervised(input=str(tmp_path / "train.txt"), **options).save_model(str(tmp_path / "m.bin"))
    with pytest.raises(ValueError, match="ova"):
        FastTextModel(tmp_path / "m.bin")
