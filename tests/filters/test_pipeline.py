"""Measuring, deciding, the ledger, and what is kept."""

import random
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from cs336.documents import Document
from cs336.files import UserError
from cs336.filters import pipeline
from cs336.filters.c4 import C4Config
from cs336.filters.decontaminate import EvalIndex
from cs336.filters.heuristics import GopherConfig, GopherMeasures, failing_rule
from cs336.filters.labelled import Comment
from cs336.filters.pipeline import FILTERS, MEASUREMENTS, FilterConfig, FilterModels, apply, decide, ledger
from cs336.filters.pipeline import measure_documents as measure
from cs336.filters.quality import QualityConfig, QualityModel, train_quality
from cs336.filters.toxicity import ToxicityConfig, train_toxicity

ENGLISH = (
    "The harbour was quiet when the first boats came in, and nobody had expected them before noon. "
    "The women who mend the nets were still at breakfast when the bell rang over the old town. "
    "They shook their heads and went on unloading the crates until the market opened at last. "
)
FRENCH = (
    "Le port était calme quand les premiers bateaux arrivèrent, et personne ne les attendait avant midi. "
    "Les femmes qui réparent les filets prenaient encore leur repas quand la cloche sonna sur la vieille ville. "
) * 2
QUESTION = "How many crates of herring did the third boat bring home if each of the nine men carried four?"


def document(name: str, text: str) -> Document:
    return Document(id=name, url=f"http://x/{name}", warc="a.warc.gz", offset=len(name), text=text)


DOCUMENTS = [
    document("good", ENGLISH + ENGLISH),
    document("french", FRENCH),
    document("short", "The harbour was quiet when the first boats came in."),
    document("leaked", ENGLISH + ENGLISH + QUESTION),
    document("personal", ENGLISH + ENGLISH + "Write to ann@x.com or call 283-182-3829."),
    document("empty", ""),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> FilterModels:
    path = tmp_path_factory.mktemp("evals") / "evals.npz"
    EvalIndex.build({"sums": [QUESTION]}).save(path)
    return FilterModels(evals=path)


@pytest.fixture(scope="module")
def measured(models: FilterModels) -> tuple[pl.DataFrame, dict[str, float], dict[str, str]]:
    return measure(DOCUMENTS, models)


def test_every_document_is_measured_by_every_filter(measured):
    table, seconds, states = measured
    assert table.schema == pl.Schema(MEASUREMENTS)
    assert table.columns[:4] == ["id", "url", "warc", "offset"]
    assert table["id"].to_list() == [document.id for document in DOCUMENTS]
    assert table["language"].to_list()[:5] == ["en", "fr", "en", "en", "en"]
    assert table["num_eval_hits"].to_list() == [0, 0, 0, 7, 0, 0]
    assert table["eval_hits"].to_list()[3] == "sums: 7"
    assert table.row(4, named=True)["num_emails"] == table.row(4, named=True)["num_phones"] == 1
    assert table["nsfw_score"].null_count() == table["quality_score"].null_count() == len(DOCUMENTS)
    assert list(seconds) == list(states) == list(FILTERS)
    assert all(value > 0 for value in seconds.values())
    assert states["language"] == "on: resiliparse"
    assert states["nsfw"] == states["toxic"] == states["quality"] == "off, no model"
    assert states["contaminated"] == "on: 1 evals, 7 n-grams"


def test_two_workers_measure_what_one_does(measured, models: FilterModels):
    table, _, states = measure(DOCUMENTS * 5, models, num_workers=2)
    assert table.equals(pl.concat([measured[0]] * 5))
    assert states == measured[2]


def test_pages_are_measured_32_together_and_long_documents_fewer(monkeypatch):
    batches: list[list[int]] = []

    def measured(models, documents):
        batches.append([len(document.text) for document in documents])
        return one_batch(models, documents)

    one_batch = pipeline._measure
    monkeypatch.setattr(pipeline, "_measure", measured)
    measure([document(str(n), "a" * 30_000) for n in range(70)], FilterModels(filters=()))
    assert [len(batch) for batch in batches] == [32, 32, 6]
    batches.clear()
    sizes = [400_000] * 7 + [5_000_000] * 2 + [10] * 40
    table, _, _ = measure([document(str(n), "a" * size) for n, size in enumerate(sizes)], FilterModels(filters=()))
    assert table["num_bytes"].to_list() == sizes
    assert [len(batch) for batch in batches] == [3, 3, 2, 1, 32, 8]
    assert all(sum(batch[:-1]) < 1 << 20 for batch in batches)  # what a task holds besides its last document


def test_the_first_failing_filter_is_the_reason(measured):
    decisions = decide(measured[0], FilterConfig())
    reasons = [None, "language", "gopher:too_few_words", "contaminated", None, "language"]
    assert decisions["reason"].to_list() == reasons
    assert decisions["kept"].to_list() == [reason is None for reason in reasons]
    assert decisions["passes_gopher"].to_list() == [True, True, False, True, True, False]
    assert decisions["passes_nsfw"].to_list() == [True] * 6  # off: nothing fails, and the ledger says off


def test_other_thresholds_need_no_models(measured):
    relaxed = replace(FilterConfig(), languages=(), gopher=GopherConfig(min_words=5), max_eval_hits=7)
    assert decide(measured[0], relaxed)["reason"].to_list() == [None] * 5 + ["gopher:too_few_words"]
    both = replace(FilterConfig(), languages=("en", "fr"))
    assert decide(measured[0], both)["kept"].to_list()[:2] == [True, True]


def test_scores_on_the_bound_pass_and_scores_beyond_do_not(measured):
    row = measured[0].head(1)
    table = pl.concat(
        row.with_columns(nsfw_score=pl.lit(nsfw), toxic_score=pl.lit(toxic), quality_score=pl.lit(quality))
        for nsfw, toxic, quality in [(0.5, 0.5, 0.2), (0.51, 0.51, 0.1), (0.1, 0.51, 0.1), (0.1, 0.1, 0.1)]
    )
    strict = replace(FilterConfig(), min_quality_score=0.2)
    assert decide(table, strict)["reason"].to_list() == [None, "harmful:nsfw", "harmful:toxic", "quality"]
    assert decide(table, FilterConfig())["reason"].to_list() == [None, "harmful:nsfw", "harmful:toxic", None]


@pytest.mark.parametrize("marks_are_words", [True, False])
def test_the_rules_on_columns_agree_with_the_rules_on_one_text(measured, marks_are_words: bool):
    generator = random.Random(0)
    pick = generator.choice
    measures = [
        GopherMeasures(
            num_words=pick([0, 1, 49, 50, 100_000, 100_001]),
            mean_word_length=pick([2.9, 3.0, 10.0, 10.1]),
            ellipsis_line_fraction=pick([0.3, 0.31]),
            alphabetic_word_fraction=pick([0.79, 0.8]),
        )
        for _ in range(300)
    ]
    spaced = "" if marks_are_words else "spaced_"
    columns = {
        f"num_{spaced}words": [m.num_words for m in measures],
        f"mean_{spaced}word_length": [m.mean_word_length for m in measures],
        "ellipsis_line_fraction": [m.ellipsis_line_fraction for m in measures],
        f"alphabetic_{spaced}word_fraction": [m.alphabetic_word_fraction for m in measures],
    }
    table = pl.concat([measured[0].head(1)] * 300).with_columns(pl.DataFrame(columns))
    config = GopherConfig(marks_are_words=marks_are_words)
    expected = [failing_rule(m, config) for m in measures]
    actual = decide(table, replace(FilterConfig(), gopher=config))["reason"].to_list()
    assert actual == [rule and f"gopher:{rule}" for rule in expected]
    assert len(set(expected)) == 7


def test_the_ledger_adds_up(measured):
    table, seconds, states = measured
    rows = ledger(decide(table, FilterConfig()), states, seconds)
    assert [row["filter"] for row in rows] == list(FILTERS)
    assert [(row["seen"], row["kept"], row["dropped"]) for row in rows] == [
        *((6, 4, 2), (4, 4, 0), (4, 4, 0), (4, 4, 0), (4, 3, 1), (3, 3, 0), (3, 2, 1), (2, 2, 0)),
    ]
    assert [row["share_of_discards"] for row in rows] == [0.5, 0.0, 0.0, 0.0, 0.25, 0.0, 0.25, 0.0]
    assert [row["would_drop"] for row in rows] == [2, 0, 0, 0, 2, 0, 1, 0]
    assert rows[-1]["num_masked"] == 2
    assert rows[1]["state"] == "off, no model"


def test_a_ledger_of_nothing_divides_by_nothing(models: FilterModels):
    table, seconds, states = measure([], models)
    rows = ledger(decide(table, FilterConfig()), states, seconds)
    assert {row["seen"] for row in rows} == {0}
    assert {row["share_of_discards"] for row in rows} == {None}


def test_kept_documents_are_masked_and_otherwise_unchanged(measured):
    decisions = decide(measured[0], FilterConfig())
    kept = list(apply(DOCUMENTS, decisions, FilterConfig()))
    assert kept[0] == DOCUMENTS[0]
    assert kept[1] == DOCUMENTS[4]._replace(
        text=ENGLISH + ENGLISH + "Write to |||EMAIL_ADDRESS||| or call |||PHONE_NUMBER|||."
    )
    assert len(kept) == 2
    unmasked = replace(FilterConfig(), mask_pii=False)
    assert list(apply(DOCUMENTS, decide(measured[0], unmasked), unmasked))[1] == DOCUMENTS[4]
    assert decide(measured[0], unmasked)["num_masked"].sum() == 0
    assert decide(measured[0], replace(FilterConfig(), languages=("fr",)))["num_masked"].sum() == 0  # none is kept


def test_a_filter_that_is_not_wanted_measures_drops_and_masks_nothing(models: FilterModels, tmp_path: Path):
    # A model that is not opened need not even be there.
    wanted = replace(models, filters=("contaminated",), quality=tmp_path / "none.bin")
    table, seconds, states = measure(DOCUMENTS, wanted)
    off = set(FILTERS) - {"contaminated"}
    assert {name for name, state in states.items() if state == "off, by the preset"} == off
    measures = set(MEASUREMENTS) - {"id", "url", "warc", "offset", "num_bytes", "num_eval_hits", "eval_hits"}
    assert all(table[name].null_count() == len(DOCUMENTS) for name in measures)
    decisions = decide(table, FilterConfig())
    assert decisions["reason"].to_list() == [None, None, None, "contaminated", None, None]
    assert list(apply(DOCUMENTS, decisions, FilterConfig())) == DOCUMENTS[:3] + DOCUMENTS[4:]
    rows = {row["filter"]: row for row in ledger(decisions, states, seconds)}
    assert all(rows[name]["dropped"] == 0 and rows[name]["state"] == "off, by the preset" for name in off)
    assert rows["pii"]["num_masked"] == 0
    told = decide(table, FilterConfig(max_eval_hits=None))
    assert told["kept"].all() and told["num_eval_hits"].to_list() == [0, 0, 0, 7, 0, 0]


def test_a_filter_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match="no filter 'gofer'; there are language"):
        measure(DOCUMENTS, FilterModels(filters=("gofer",)))


@pytest.mark.parametrize("documents", [DOCUMENTS[:-1], [*DOCUMENTS, DOCUMENTS[0]], DOCUMENTS[::-1]])
def test_decisions_about_other_documents_are_an_error(measured, documents: list[Document]):
    with pytest.raises(ValueError, match="decide on the measurements of these documents"):
        list(apply(documents, decide(measured[0], FilterConfig()), FilterConfig()))


def test_a_missing_model_shows_before_any_work(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.bin"):
        measure(iter(DOCUMENTS), FilterModels(quality=tmp_path / "none.bin"))


def test_c4_leaves_lines_and_what_comes_after_measures_those(models: FilterModels):
    page = document("page", f"Home | News\n{ENGLISH}\n{ENGLISH}\nWrite to ann@x.com if you can come.\nann@menu.com")
    pages = [page, document("menu", "Home | News\n" * 60), document("code", f"{ENGLISH}\nif (x) {{ y }} then we go.")]
    c4 = C4Config(enabled=True)
    table, _, states = measure(pages, replace(models, c4=c4))
    assert states["c4"] == "on"
    assert table["num_lines"].to_list() == [5, 60, 2] and table["num_clean_lines"].to_list() == [3, 0, 2]
    assert table["c4_rule"].to_list() == [None, "too_few_sentences", "curly_bracket"]
    assert table["num_emails"].to_list() == [1, 0, 0]  # the menu's address is gone before
    decisions = decide(table, FilterConfig(languages=()))
    assert decisions["reason"].to_list() == [None, "c4:too_few_sentences", "c4:curly_bracket"]
    kept = list(apply(pages, decisions, FilterConfig(languages=()), c4=c4))
    assert [each.text for each in kept] == [
        f"{ENGLISH.strip()}\n{ENGLISH.strip()}\nWrite to |||EMAIL_ADDRESS||| if you can come."
    ]


def test_quality_is_scored_on_the_text_that_its_classifier_learns_from(tmp_path: Path):
    config = QualityConfig(min_documents_per_class=20, bucket=2_000, epochs=20)
    classes = [[(f"{name}{n}.org", f"{name} {n}") for n in range(60)] for name in ("article", "menu")]
    train_quality(*classes, tmp_path / "quality.ftz", config)
    pages = [document("page", f"article\narticle\n{ENGLISH}")]  # C4 takes away what the model knows
    models = FilterModels(filters=("c4", "quality"), quality=tmp_path / "quality.ftz")
    table, _, _ = measure(pages, replace(models, c4=C4Config(enabled=True)))
    assert table["num_clean_lines"].to_list() == [1]
    assert table["quality_score"].to_list() == [QualityModel(tmp_path / "quality.ftz").score(pages[0].text)]
    assert QualityModel(tmp_path / "quality.ftz").score(ENGLISH) not in table["quality_score"].to_list()


def test_a_toxicity_model_of_our_own_measures_where_dolmas_is_absent(tmp_path: Path):
    words = {True: ["awful", "moron", "stupid", "trash"], False: ["harbour", "boats", "market", "bell"]}
    generator = random.Random(0)
    comments = [
        Comment(" ".join(generator.choices(words[n % 2 == 0], k=8)) + f" {n}", is_toxic=n % 2 == 0) for n in range(300)
    ]
    config = ToxicityConfig(bucket=2_000, min_documents_per_class=20)
    train_toxicity(comments, ["The market opened at noon."], tmp_path / "own.ftz", config)
    documents = [document("rude", "stupid trash, you awful moron"), document("calm", "boats at the market bell")]
    table, _, states = measure(documents, FilterModels(own_toxic=tmp_path / "own.ftz"))
    assert states["toxic"] == "on: trained here"
    assert states["nsfw"] == "off, no model"
    rude, calm = table["toxic_score"]
    assert rude > 0.5 > calm
    decisions = decide(table, FilterConfig(languages=(), gopher=GopherConfig(min_words=1)))
    assert decisions["reason"].to_list() == ["harmful:toxic", None]
    # One that the preset leaves out is not even opened.
    _, _, states = measure(documents, FilterModels(filters=("gopher",), own_toxic=tmp_path / "none.ftz"))
    assert states["toxic"] == "off, by the preset"
