"""How good the filters are, measured on labelled data where this machine has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from cs336 import catalog
from cs336.evals.report import wilson_interval
from cs336.files import UserError, read_jsonl, write_json
from cs336.filters.gold_pages import (
    ARTICLE,
    CRAWL_PAGE,
    LEFT_OVER,
    RECIPE,
    UNKNOWN,
    Example,
    gold_examples,
    negatives_of,
)
from cs336.filters.heuristics import GopherConfig
from cs336.filters.labelled import read_language_sentences, read_pii_sentences
from cs336.filters.language import LanguageModel
from cs336.filters.language_accuracy import LanguageScore, known_languages, language_scores, sum_scores
from cs336.filters.nltk_reading import compare_readings, nltk_words
from cs336.filters.pii_accuracy import PiiScore, pii_scores
from cs336.filters.pipeline import FilterConfig
from cs336.filters.quality import QualityConfig, QualityModel, train_quality
from cs336_assets import plots
from cs336_assets.asset import Metadata, Step, asset
from cs336_assets.crawl import table
from cs336_assets.filters import classifier_figures

NO_DATA = "off, no data"
_NUM_GOPHER_DOCUMENTS = 10_000
# Of 320 pages a class nothing is learnt in fastText's default of 5 epochs at 0.1 (measured: all scores near 0.5).
_ARTICLE_EPOCHS, _ARTICLE_LR = 25, 0.5
_UNSEEN_SITES = ("archive.org", "en.wikipedia.org")  # trained on by nobody: what they get, strangers get


@asset(group="data_quality", kinds={"fasttext"}, owner="team:data", datasets=("labelled-languages", "lid176"))
def language_accuracy(step: Step, filters: FilterConfig) -> Metadata:
    """Language identification on labelled sentences of 79 languages, alone and joined in runs.

    fastText's lid.176 (where it is) beside resiliparse's detector: how often each names the right
    language, how much English it keeps at the pipeline's threshold, and how much else it lets through.
    """
    found = catalog.find("labelled-languages")
    if found is None:
        return _off(step)
    sentences = read_language_sentences(found)
    lid176 = catalog.find("lid176")
    models = [*([LanguageModel(lid176)] if lid176 else []), LanguageModel()]
    scores = {
        model.name: list(
            language_scores(sentences, model, min_confidence=filters.min_language_confidence, progress=step.progress)
        )
        for model in models
    }
    known = {model.name: known_languages(model) for model in models}
    write_json(step.folder / "scores.json", {name: [row._asdict() for row in rows] for name, rows in scores.items()})
    by_length = {name: _by_length(rows) for name, rows in scores.items()}
    curves = {name: {n: row.num_right / row.num_texts for n, row in rows.items()} for name, rows in by_length.items()}
    plots.accuracy_by_length(curves, step.folder / "accuracy.png")
    return {
        "state": f"{len(sentences)} languages, threshold {filters.min_language_confidence:g}",
        "summary": _language_summary(scores, known),
        "by_language": _language_table(scores),
        "accuracy": {"image": "accuracy.png"},
    }


@asset(group="data_quality", kinds={"python"}, owner="team:data", datasets=("labelled-pii",))
def pii_accuracy(step: Step) -> Metadata:
    """Precision and recall of the patterns for e-mail, IP and phone numbers on labelled sentences.

    The sentences come from templates with made-up data. *In scope* are the formats that the handout
    asks for: US phone numbers and IPv4. With 95 % Wilson intervals; a miss is whatever is not masked
    to its last character.
    """
    if catalog.find("labelled-pii") is None:
        return _off(step)
    sentences = [row for path in catalog.require_files("labelled-pii") for row in read_pii_sentences(path)]
    scores = pii_scores(sentences)
    write_json(step.folder / "scores.json", [score._asdict() for score in scores])
    rows = [
        [
            score.kind,
            _share(score.num_right, score.num_found),
            _share(score.num_masked_in_scope, score.num_in_scope),
            _share(score.num_masked, score.num_labelled),
        ]
        for score in scores
    ]
    return {
        "num_sentences": len(sentences),
        "scores": table(["kind", "precision", "recall in scope", "recall of all labelled"], rows),
        "missed": _pii_examples(scores, "missed"),
        "found_but_not_labelled": _pii_examples(scores, "false"),
        "out_of_scope": _pii_examples(scores, "left_out"),
    }


@asset(group="data_quality", kinds={"python"}, owner="team:data", datasets=("prose-sample",))
def gopher_agreement(step: Step) -> Metadata:
    """Gopher's verdicts on 10,000 real documents, with our words and with NLTK's.

    NLTK's `preserve_line=True` needs no downloaded model, and parts only the last full stop of a text
    from its word; given sentence by sentence it parts each. Our words with marks are the handout's
    rule, those between spaces what the presets use.
    """
    if catalog.find("prose-sample") is None:
        return _off(step)
    try:
        readings = {"whole text": nltk_words(), "sentence by sentence": nltk_words(by_sentence=True)}
    except UserError as missing:
        return _off(step, str(missing))
    texts = _prose(_NUM_GOPHER_DOCUMENTS)
    rows: list[list[Any]] = []
    rules: list[list[Any]] = []
    for marks in (True, False):
        for name, words_of in readings.items():
            config = GopherConfig(marks_are_words=marks)
            agreement = compare_readings(step.progress(texts, unit="documents", label=name), words_of, config)
            ours = "with marks" if marks else "between spaces"
            same = agreement.num_documents - agreement.num_differing
            rows.append([ours, name, _share(same, agreement.num_documents), *map(_percent, agreement.relative_gaps)])
            rules += [
                [ours, name, theirs or "*kept*", mine or "*kept*", count]
                for (mine, theirs), count in agreement.rules.most_common()
                if mine != theirs
            ]
    write_json(step.folder / "agreement.json", {"verdicts": rows, "rules": rules})
    return {
        "num_documents": len(texts),
        "verdicts": table(["our words", "NLTK", "same verdict", "words differ by", "word length by"], rows),
        "disagreements": table(["our words", "NLTK", "NLTK says", "we say", "documents"], rules),
    }


@asset(
    group="data_quality",
    kinds={"fasttext"},
    owner="team:data",
    datasets=("gold-pages", "crawl-samples", "lid176"),
)
def article_classifier(step: Step, quality: QualityConfig, filters: FilterConfig) -> Metadata:
    """The quality classifier, trained on pages whose article people have marked.

    Positives are those pages, negatives recipe pages, pages of small crawls, and the marked pages
    without their article; all English, through the same extractor, split by site. The curve is of
    held-out sites, the table by kind of all pages. Two sites are kept out altogether, and show what
    happens to a forum, a log-in page and an encyclopaedia never seen.
    """
    if catalog.find("gold-pages") is None or catalog.find("crawl-samples") is None:
        return _off(step)
    examples = list(
        gold_examples(
            catalog.files_of("gold-pages"),
            catalog.require_files("crawl-samples"),
            language_model=catalog.find("lid176"),
            min_confidence=filters.min_language_confidence,
            num_workers=step.num_workers,
            progress=step.progress,
        )
    )
    seen = [example for example in examples if example.site not in _UNSEEN_SITES]
    articles = [each for each in seen if each.kind == ARTICLE]
    report = train_quality(
        [(each.site, each.text) for each in articles],
        [(each.site, each.text) for each in negatives_of(seen, len(articles))],
        step.folder / "articles.ftz",
        replace(quality, epochs=_ARTICLE_EPOCHS, lr=_ARTICLE_LR),
    )
    write_json(step.folder / "report.json", report._asdict())
    if not report.held_out:
        return {"state": report.state}
    model = QualityModel(step.folder / "articles.ftz")
    return classifier_figures(report, step.folder) | {
        "kinds": _kinds_table(examples, model),
        "unseen_sites": table(["probability", "address", "characters"], list(_unseen(examples, model))),
    }


def _off(step: Step, state: str = NO_DATA) -> Metadata:
    write_json(step.folder / "report.json", {"state": state})
    return {"state": state}


def _share(num: int, total: int) -> str:
    if not total:
        return "-"
    low, high = wilson_interval(num, total)
    return f"{100 * num / total:.1f}% ({100 * low:.1f}–{100 * high:.1f}) of {total:,}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _by_length(scores: list[LanguageScore]) -> dict[int, LanguageScore]:
    lengths = sorted({score.num_sentences for score in scores})
    return {n: sum_scores([score for score in scores if score.num_sentences == n]) for n in lengths}


def _language_summary(scores: dict[str, list[LanguageScore]], known: dict[str, frozenset[str]]) -> dict[str, str]:
    header = ["detector", "sentences", "right", "right, of languages it knows", "English kept", "others let through"]
    rows = []
    for name, own in scores.items():
        for length, total in _by_length(own).items():
            here = [score for score in own if score.num_sentences == length]
            knows = [score for score in here if score.language in known[name] or score.language in ("nb", "nn")]
            english = sum_scores([score for score in here if score.language == "en"])
            others = sum_scores([score for score in here if score.language != "en"])
            in_known = sum_scores(knows)
            rows.append(
                [
                    name,
                    length,
                    _share(total.num_right, total.num_texts),
                    f"{_percent(in_known.num_right / in_known.num_texts)} of {len(knows)} languages",
                    _share(english.num_english, english.num_texts),
                    _share(others.num_english, others.num_texts),
                ]
            )
    return table(header, rows)


def _language_table(scores: dict[str, list[LanguageScore]]) -> dict[str, str]:
    columns = [(name, n) for name, rows in scores.items() for n in sorted({row.num_sentences for row in rows})]
    cells = {
        (name, row.num_sentences, row.language): _percent(row.num_right / max(1, row.num_texts))
        for name, rows in scores.items()
        for row in rows
    }
    languages = sorted({language for _, _, language in cells})
    rows = [[language, *(cells[name, n, language] for name, n in columns)] for language in languages]
    return table(["language", *(f"{name}, {n}" for name, n in columns)], rows)


def _pii_examples(scores: list[PiiScore], field: str) -> dict[str, str]:
    rows = [[score.kind, text] for score in scores for text in getattr(score, field)[:12]]
    return table(["kind", "text"], rows)


def _prose(num_documents: int) -> list[str]:
    """So many documents of the sample, the same ones on every machine."""
    paths = catalog.require_files("prose-sample")
    texts = [row["text"] for path in paths for row in read_jsonl(path)]
    return sorted(texts, key=lambda text: blake2b(text.encode(errors="replace"), digest_size=8).digest())[
        :num_documents
    ]


def _kinds_table(examples: list[Example], model: QualityModel) -> dict[str, str]:
    rows = []
    for kind in (ARTICLE, RECIPE, CRAWL_PAGE, LEFT_OVER, UNKNOWN):
        own = [model.classify(each.text)[0] == "wiki" for each in examples if each.kind == kind]
        if own:
            rows.append([kind, len(own), _percent(sum(own) / len(own))])
    return table(["kind", "pages", "called wiki"], rows)


def _unseen(examples: list[Example], model: QualityModel) -> Iterator[list[Any]]:
    for example in examples:
        if example.site in _UNSEEN_SITES and any(word in example.url for word in ("forum", "login", "/wiki/")):
            yield [f"{model.score(example.text):.3f}", example.url, len(example.text)]
