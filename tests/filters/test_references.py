"""From addresses of a list to the classifier's positives, over a real server on loopback."""

import sys
from pathlib import Path

from cs336.crawl.crawler import Politeness
from cs336.crawl.references import fetch_pages, sample_urls
from cs336.extract.shard import ExtractConfig
from cs336.filters.pipeline import FilterConfig, FilterModels
from cs336.filters.quality import QualityConfig, QualityModel, host_of, read_url_list, train_quality
from cs336.filters.references import clean_pages

sys.path.insert(0, str(Path(__file__).parents[1]))
from file_server import FileServer

SENTENCES = [
    "The harbour of {town} was built in the year {year} by the king's engineers.",
    "Its walls are described in a chronicle which survives in the archive of the cathedral.",
    "After a century of war the treaty of {year} gave the whole coast to the northern kingdom.",
    "Most of the inhabitants lived from fishing until the railway came to {town} at last.",
    "The old church has a tower of granite, and a library that holds four hundred manuscripts.",
    "Historians disagree about the number of ships which the town sent to the war.",
    "In the following decades the population grew, and a school was opened near the market.",
]


def article(number: int) -> bytes:
    town, year = f"Town{number}", 1200 + number
    text = " ".join(sentence.format(town=town, year=year) for sentence in SENTENCES)
    return f"<html><body><p>{text}</p></body></html>".encode()


def test_the_whole_path_from_a_list_of_addresses_to_a_model(tmp_path: Path):
    german = "Der Hafen wurde von den Ingenieuren des Königs gebaut und später von der Stadt erweitert. " * 6
    with FileServer() as server:
        server.files |= {f"/a{n}": article(n) for n in range(40)}
        server.files |= {"/german": f"<p>{german}</p>".encode(), "/short": b"<p>Log in</p>"}
        server.types |= dict.fromkeys(server.files, "text/html")
        server.files |= {"/picture.png": b"\x89PNG\r\n"}
        server.types |= {"/picture.png": "image/png"}
        hosts = {f"site{n}.test": ("127.0.0.1", int(server.url("").rpartition(":")[2])) for n in range(40)}
        lines = [f"http://site{n}.test/a{n}" for n in range(40)]
        lines += [f"http://site0.test/{name}" for name in ("german", "short", "picture.png", "dead")]
        (tmp_path / "urls.txt").write_text("\n".join(lines))
        urls = sample_urls(read_url_list(tmp_path / "urls.txt"), 100)
        quick = Politeness(timeout_seconds=5, max_attempts=1)
        stats = fetch_pages(
            urls, tmp_path / "warc", date="2026-01-01T00:00:00Z", num_files=4, politeness=quick, hosts=hosts
        )
    assert stats.num_fetches["200"] == 43
    warcs = sorted((tmp_path / "warc").iterdir())
    kept, reasons = clean_pages(warcs, ExtractConfig(), FilterModels(), FilterConfig())
    assert sorted(document.url for document in kept) == sorted(lines[:40]), reasons
    assert kept[0].text.startswith("The harbour of Town")
    # The picture and the missing page are no pages; German and two words are not what is wanted.
    assert reasons["not HTML: image/png"] == reasons["status 404"] == 1
    assert reasons["language"] + reasons["gopher:too_few_words"] == 2
    config = QualityConfig(min_documents_per_class=20, bucket=2_000, epochs=20)
    crawl = [(f"forum{n}.test", f"Log in register reply quote posts views page {n} next members") for n in range(40)]
    report = train_quality(
        [(host_of(document.url), document.text) for document in kept], crawl, tmp_path / "quality.ftz", config
    )
    assert report.state == "on: fastText"
    assert report.split_by == "site"
    model = QualityModel(tmp_path / "quality.ftz")
    assert model.classify("The treaty survives in the archive of the old church.")[0] == "wiki"
    assert model.classify("Reply quote posts views members log in")[0] == "cc"
