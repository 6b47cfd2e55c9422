"""Every external data set and model, declared once: origin, files, licence, loader, place in a mirror.

A checksum stands here only where the bytes themselves were seen: `sha256` and `num_bytes` describe the
file as its origin serves it, `mirror_sha256` the (often recompressed) copy of a mirror laid out like
the declared paths. Everything else is unpinned until its first download writes `catalog_lock.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_GITHUB = "https://raw.githubusercontent.com"
_BASICS = f"{_GITHUB}/stanford-cs336/assignment1-basics/25a8a49f6460c83a30416d42348f2ef11d1dd185/tests/fixtures"
_ALIGNMENT = f"{_GITHUB}/stanford-cs336/assignment5-alignment/eb2c562e05802d3c9ee4c4ec2eec43b104d77e9e/data"
_GSM8K = f"{_GITHUB}/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data"
_MATH = f"{_GITHUB}/fadibenz/llm-alignment-reasoning-RL/377d6e5bd725ba7700c0f8587ee743933dd8a04e/data/MATH"
_HH = f"{_GITHUB}/anthropics/hh-rlhf/354e5c3cb8960630860dd5774a6ac2a58313bf4d"
_ICL = f"{_GITHUB}/mosaicml/llm-foundry/8c8dd48f72168c5d51e2f7b151595892a8fba43d/scripts/eval/local_data"
_DOLMA = "https://dolma-artifacts.org/fasttext_models/jigsaw_fasttext_bigrams_20230515"
_WEIGHTS = ("*.safetensors", "*.json", "*.txt")  # weights, configuration, tokenizer; no second copy in another format


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of an entry.

    Attributes:
        name: path in the hub repository; of HTTPS entries, the name it is stored under.
        url: HTTPS address; "" in a hub repository, or where no public address is known.
        mirror: path in a mirror folder; one more or one less `.gz` or `.xz` is found too.
        sha256: of the file as the origin serves it; None: unpinned.
        num_bytes: likewise.
        mirror_sha256: of the mirror's copy.
    """

    name: str
    url: str = ""
    mirror: str = ""
    sha256: str | None = None
    num_bytes: int | None = None
    mirror_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One external data set or model.

    Attributes:
        name: how commands and presets call it.
        what: one line for people.
        kind: data set or model.
        origin: a repository on the Hugging Face hub, or the page or host of the URLs.
        hub: True when `origin` is a hub repository.
        files: its files; empty for hub entries given by `patterns`.
        patterns: shell patterns of the files taken from a hub repository.
        mirror: paths that stand for the whole entry in a mirror, in order of preference.
        revision: commit of the origin; None: unpinned.
        licence: what the origin states.
        loader: the function that reads it, or its format.
        gated: the hub asks for consent to a licence and for a token.
        differs_from: entries that must not hold the same bytes.
    """

    name: str
    what: str
    kind: Literal["dataset", "model"]
    origin: str
    licence: str
    loader: str
    hub: bool = False
    files: tuple[File, ...] = ()
    patterns: tuple[str, ...] = ()
    mirror: tuple[str, ...] = ()
    revision: str | None = None
    gated: bool = False
    differs_from: tuple[str, ...] = ()


def _icl(task: str, sha256: str, num_bytes: int, mirror_sha256: str) -> File:
    name = task.rpartition("/")[2] + ".jsonl"
    return File(
        name=name,
        url=f"{_ICL}/{task}.jsonl",
        mirror=f"eval/icl_tasks/{name}.gz",
        sha256=sha256,
        num_bytes=num_bytes,
        mirror_sha256=mirror_sha256,
    )


_ALL = (
    # ---- text to pretrain on ----
    Entry(
        name="tinystories",
        what="TinyStories V2 (GPT-4): 2.12 M short stories, <|endoftext|> between them",
        kind="dataset",
        origin="roneneldan/TinyStories",
        hub=True,
        files=(
            File(name="TinyStoriesV2-GPT4-train.txt", mirror="text/TinyStoriesV2-GPT4-train.txt.gz"),
            File(name="TinyStoriesV2-GPT4-valid.txt", mirror="text/TinyStoriesV2-GPT4-valid.txt.gz"),
        ),
        licence="CDLA-Sharing-1.0",
        loader="cs336.crawl.local_files.TextFiles",
    ),
    Entry(
        name="tinystories-sample",
        what="the first 1,097 stories of TinyStories (1 MB), split 90:10; only in a mirror",
        kind="dataset",
        origin="github.com/s-ajaykumar/smallGPT, data/tiny_stories.txt, cut into stories",
        files=(
            File(
                name="train.txt",
                mirror="text/tinystories/train.txt.gz",
                mirror_sha256="43d387bd245b47b5eeda768ff8a37a503e34d1571ce7189d51118cb9ac37df70",
            ),
            File(
                name="valid.txt",
                mirror="text/tinystories/valid.txt.gz",
                mirror_sha256="765a3a48e4e19658739f2f7f56c02f07759d2760fe8fe39e8f3ae5e5d9314e03",
            ),
        ),
        revision="b8b899265a5574abd2c19d8857039309184a357c",
        licence="CDLA-Sharing-1.0",
        loader="cs336.crawl.local_files.TextFiles",
    ),
    Entry(
        name="owt-sample",
        what="the course's sample of OpenWebText, <|endoftext|> between documents",
        kind="dataset",
        origin="stanford-cs336/owt-sample",
        hub=True,
        files=(
            File(name="owt_train.txt.gz", mirror="text/owt_train.txt.gz"),
            File(name="owt_valid.txt.gz", mirror="text/owt_valid.txt.gz"),
        ),
        licence="CC0-1.0 (OpenWebText); pages belong to their publishers",
        loader="cs336.crawl.local_files.TextFiles",
    ),
    Entry(
        name="slimpajama",
        what="SlimPajama, a 6-billion-token sample: the corpus of the 2025 scaling laws",
        kind="dataset",
        origin="DKYoon/SlimPajama-6B",
        hub=True,
        patterns=("data/*.parquet",),
        mirror=("text/slimpajama",),
        licence="that of each source, listed on cerebras/SlimPajama-627B",
        loader="Parquet, column text",
    ),
    Entry(
        name="dclm",
        what="DCLM-baseline web text, one shard: the corpus of the 2026 scaling laws",
        kind="dataset",
        origin="mlfoundations/dclm-baseline-1.0",
        hub=True,
        files=(
            File(
                name="global-shard_01_of_10/local-shard_0_of_10/shard_00000000_processed.jsonl.zst",
                mirror="text/dclm/shard_00000000_processed.jsonl.zst",
            ),
        ),
        licence="CC-BY-4.0",
        loader="JSON Lines in Zstandard, field text",
    ),
    # ---- models and lists for filters ----
    Entry(
        name="lid176",
        what="fastText language identification, 176 languages, compressed (0.9 MB)",
        kind="model",
        origin="fasttext.cc",
        files=(
            File(
                name="lid.176.ftz",
                url="https://dl.fbaipublicfiles.com/fasttext/supervised-models/lid.176.ftz",
                mirror="weights/lid.176.ftz",
                sha256="8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83",
                num_bytes=938_013,
                mirror_sha256="8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83",
            ),
        ),
        licence="CC-BY-SA-3.0",
        loader="cs336.filters.language",
    ),
    Entry(
        name="lid176-full",
        what="fastText language identification, 176 languages, uncompressed (131 MB)",
        kind="model",
        origin="fasttext.cc",
        files=(
            File(
                name="lid.176.bin",
                url="https://dl.fbaipublicfiles.com/fasttext/supervised-models/lid.176.bin",
                mirror="weights/lid.176.bin",
            ),
        ),
        licence="CC-BY-SA-3.0",
        loader="cs336.filters.language",
    ),
    # The hub repositories allenai/dolma-jigsaw-fasttext-bigrams-{nsfw,hatespeech} once served one and
    # the same file, so the original host is asked, and the two are compared after download.
    Entry(
        name="dolma-nsfw",
        what="Dolma's fastText bigram classifier of obscene comments",
        kind="model",
        origin="dolma-artifacts.org",
        files=(
            File(
                name="jigsaw_fasttext_bigrams_nsfw_final.bin",
                url=f"{_DOLMA}/jigsaw_fasttext_bigrams_nsfw_final.bin",
                mirror="weights/jigsaw_fasttext_bigrams_nsfw_final.bin",
            ),
        ),
        revision="2023-05-15",
        licence="ODC-BY (Dolma)",
        loader="cs336.filters.harmful",
        differs_from=("dolma-toxic",),
    ),
    Entry(
        name="dolma-toxic",
        what="Dolma's fastText bigram classifier of hateful and toxic comments",
        kind="model",
        origin="dolma-artifacts.org",
        files=(
            File(
                name="jigsaw_fasttext_bigrams_hatespeech_final.bin",
                url=f"{_DOLMA}/jigsaw_fasttext_bigrams_hatespeech_final.bin",
                mirror="weights/jigsaw_fasttext_bigrams_hatespeech_final.bin",
            ),
        ),
        revision="2023-05-15",
        licence="ODC-BY (Dolma)",
        loader="cs336.filters.harmful",
        differs_from=("dolma-nsfw",),
    ),
    Entry(
        name="wikipedia-urls",
        what="43.5 M addresses cited by English Wikipedia (dump of April 2024): the quality classifier's positives",
        kind="dataset",
        origin="the course's data assignment; no public address is known to this project",
        files=(
            File(
                name="enwiki-20240420-extracted_urls.txt.gz",
                mirror="lists/enwiki-20240420-extracted_urls.txt.gz",
            ),
        ),
        licence="CC-BY-SA-4.0 (Wikipedia)",
        loader="one address a line",
    ),
    # ---- pages whose main text is known ----
    Entry(
        name="web-gold",
        what="real pages with the main text that an extractor should give: 991 of them, from three projects",
        kind="dataset",
        origin="github.com/scrapinghub/article-extraction-benchmark (4a3bc97), github.com/mozilla/readability"
        " (ab4027a), github.com/adbar/trafilatura (e90b0ef), gathered; only in a mirror",
        files=(
            File(
                name="gold.jsonl.gz",
                mirror="web/gold/dev.jsonl.gz",
                mirror_sha256="d97c9b64e8862c17bdca4d30abafd32395e7eb5a8fd33d9ff2ea685defeaddb0",
            ),
            File(
                name="pages.tar.xz",
                mirror="web/pages/dev.tar.xz",
                mirror_sha256="1760be3ef90439e82acf04f84aadb6f6bb91f823326f0af8b1c5a273c43b8e19",
            ),
        ),
        licence="MIT and Apache-2.0 (the repositories); the pages stay their publishers' property",
        loader="cs336.extract.gold.read_gold",
    ),
    Entry(
        name="paloma-c4-100",
        what="Paloma, C4 100 domains: the validation text of the data assignment",
        kind="dataset",
        origin="allenai/paloma",
        hub=True,
        patterns=("c4_100_domains/*",),
        mirror=("eval/paloma_c4_100_domains",),
        licence="AI2 ImpACT, medium risk",
        loader="JSON Lines (gzip), field text",
        gated=True,
    ),
    # ---- labelled data, to measure the filters on; each a part of its origin, only in a mirror ----
    Entry(
        name="labelled-languages",
        what="58,602 sentences of 79 languages (three quarters of Lingua's test set)",
        kind="dataset",
        origin="github.com/pemistahl/lingua, accuracyReport",
        files=(
            File(
                name="lingua_sentences.jsonl",
                mirror="labelled/langid/dev/lingua_sentences.jsonl.gz",
                mirror_sha256="d3fab63574b77e3e175347e138d0b25aef0dd673b914aabefc8ac8a733a87758",
            ),
        ),
        revision="8aa23cd523c9e13464159e7f35571c1169c9ec94",
        licence="Apache-2.0; sentences CC-BY (Leipzig Wortschatz)",
        loader="cs336.filters.labelled.read_language_sentences",
    ),
    Entry(
        name="labelled-pii",
        what="2,707 sentences from templates with made-up personal data and its places (Presidio's)",
        kind="dataset",
        origin="github.com/microsoft/presidio-research",
        files=(
            File(
                name="presidio_generated_large.jsonl",
                mirror="labelled/pii/dev/presidio_generated_large.jsonl.gz",
                mirror_sha256="77313d1b939a187ecba73680350775d6463d9f5fa5265184aad1bc433008ef29",
            ),
            File(
                name="presidio_synth_dataset_v2.jsonl",
                mirror="labelled/pii/dev/presidio_synth_dataset_v2.jsonl.gz",
                mirror_sha256="2423951bc59c608e7d762f0114a0c3342fb1621bc1e968b437dfa3b53124a471",
            ),
        ),
        revision="7622dec1e5f7d25dc60b57c28c39f4c4af197018",
        licence="MIT",
        loader="cs336.filters.labelled.read_pii_sentences",
    ),
    Entry(
        name="labelled-toxicity",
        what="18,588 tweets and 750 comments with a verdict on their tone (offensive text)",
        kind="dataset",
        origin="github.com/t-davidson/hate-speech-and-offensive-language and github.com/surge-ai/toxicity",
        files=(
            File(
                name="davidson_tweets.jsonl",
                mirror="labelled/toxicity/dev/davidson_tweets.jsonl.gz",
                mirror_sha256="1e74a35c0dd50c925c42965b7151054d3612a98f4653a7ac90055c8d29fb0849",
            ),
            File(
                name="surge_toxicity_en.jsonl",
                mirror="labelled/toxicity/dev/surge_toxicity_en.jsonl.gz",
                mirror_sha256="91e748e379a15a0893956f4f9831785353e3724e7a3372ccbb8a912724bb8adf",
            ),
        ),
        licence="MIT",
        loader="cs336.filters.labelled.read_toxic_comments",
    ),
    Entry(
        name="gold-pages",
        what="2,432 saved pages, by site, and what people say is their article text, date or recipe",
        kind="dataset",
        origin="seven repositories of extraction tests, among them github.com/scrapinghub/article-extraction-benchmark",
        files=(
            File(
                name="dev.tar.xz",
                mirror="web/pages/dev.tar.xz",
                mirror_sha256="1760be3ef90439e82acf04f84aadb6f6bb91f823326f0af8b1c5a273c43b8e19",
            ),
            File(
                name="dev_index.jsonl",
                mirror="web/pages/dev_index.jsonl.gz",
                mirror_sha256="8664f812a7ce7e6601cc80389050763268c25a2790f9675e136f481520073671",
            ),
            File(
                name="dev.jsonl",
                mirror="web/gold/dev.jsonl.gz",
                mirror_sha256="d97c9b64e8862c17bdca4d30abafd32395e7eb5a8fd33d9ff2ea685defeaddb0",
            ),
        ),
        licence="MIT or Apache-2.0 (repositories); pages belong to their publishers",
        loader="cs336.filters.labelled.read_gold_pages",
    ),
    Entry(
        name="crawl-samples",
        what="six small WARC files of real crawls: 150 or so HTML pages, forum indexes and log-ins among them",
        kind="dataset",
        origin="test data of six public repositories on web archives, named in the mirror",
        files=(
            File(
                name="aut__example.warc.gz",
                mirror="web/warc/dev/aut__example.warc.gz",
                mirror_sha256="4b47641672df6914a763b6222ee6f3bbf7e375655a87dbb4bf14d00d7d223f4b",
            ),
            File(
                name="chatnoir-resiliparse__warcfile.warc.gz",
                mirror="web/warc/dev/chatnoir-resiliparse__warcfile.warc.gz",
                mirror_sha256="5cb22a7ab6d90664d69d5d17bdb4054b8eccc9b0a3b0e766dbf6469f32613221",
            ),
            File(
                name="dolma__sample-0000.warc.gz",
                mirror="web/warc/dev/dolma__sample-0000.warc.gz",
                mirror_sha256="53bca229270eb5f5f02f64af20807178b710bc2fa13de5c96f58c70114ab839a",
            ),
            File(
                name="pywb__iana.warc.gz",
                mirror="web/warc/dev/pywb__iana.warc.gz",
                mirror_sha256="7c0c21511330bdec4ed58c9aeb1571ad54d7c63c571ba242763108152f880c72",
            ),
            File(
                name="webarchive-discovery__flashfrozen-jwat-recompressed.warc.gz",
                mirror="web/warc/dev/webarchive-discovery__flashfrozen-jwat-recompressed.warc.gz",
                mirror_sha256="3a476af3a13fcbac1d720edbaab8c4a1adac551ed539752c056813bd2a3d9839",
            ),
            File(
                name="ia-web-commons__IAH-urls-wget.warc.gz",
                mirror="web/warc/dev/ia-web-commons__IAH-urls-wget.warc.gz",
                mirror_sha256="07c78ca481a0b23f6d0dc61e651d6c79eefd70ffb8cc2ef386d014402b7ed409",
            ),
        ),
        licence="Apache-2.0 or GPL-3.0 (repositories); pages belong to their publishers",
        loader="cs336.crawl.warc",
    ),
    Entry(
        name="prose-sample",
        what="46,568 news items, reviews and web texts (BBC, Reuters-21578, IMDB, C4), one a line",
        kind="dataset",
        origin="github.com repositories of each, named in the mirror",
        files=(
            File(
                name="c4_demo.jsonl",
                mirror="text/c4_demo.jsonl.gz",
                mirror_sha256="f29e5b493220ebd38b3cf524873546e1e316a9bd06415a50398643e34beec3b3",
            ),
            File(
                name="bbc.jsonl",
                mirror="text/bbc/bbc.jsonl.gz",
                mirror_sha256="24a0006d9e8961c6b0b979112259fc59d807cab29be8c448041f59d99c5d4eca",
            ),
            File(
                name="reuters.jsonl",
                mirror="text/reuters21578/reuters.jsonl.gz",
                mirror_sha256="2367df84a4669cc05a31ec669f4030fd30ba60cc9c21d290fd8e3cf46ee7c022",
            ),
            File(
                name="test.jsonl",
                mirror="text/imdb/test.jsonl.gz",
                mirror_sha256="6d81152af3da277c5582c1bdc546ea2a0533d8513b91d82c99ce1b086e781ecc",
            ),
        ),
        licence="research use (BBC, Reuters, IMDB), ODC-BY (C4)",
        loader="JSON Lines, field text",
    ),
    # ---- tokenizer ----
    Entry(
        name="gpt2-vocab",
        what="GPT-2's vocabulary and merges",
        kind="model",
        origin="github.com/stanford-cs336/assignment1-basics",
        files=(
            File(
                name="gpt2_vocab.json",
                url=f"{_BASICS}/gpt2_vocab.json",
                mirror="tokenizer/gpt2_vocab.json.gz",
                sha256="196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
                num_bytes=1_042_301,
                mirror_sha256="5130deb01371182324dbba1829ccd8a67d4b66f5ee5f980224a0d9c0ee296fda",
            ),
            File(
                name="gpt2_merges.txt",
                url=f"{_BASICS}/gpt2_merges.txt",
                mirror="tokenizer/gpt2_merges.txt.gz",
                sha256="ac33235097fe06d4a8fff0feac994644809e6eb6ab70669e1e9fd40ae032428e",
                num_bytes=456_304,
                mirror_sha256="c584b4de328454294f43a05cdd8ca41e8d78778ae64691c6f9e3174c6d549c61",
            ),
        ),
        revision="25a8a49f6460c83a30416d42348f2ef11d1dd185",
        licence="MIT",
        loader="cs336.tokenizer.bpe",
    ),
    # ---- questions with answers ----
    Entry(
        name="mmlu",
        what="MMLU: 57 subjects; dev 285, val 1,531, test 14,042 multiple-choice questions",
        kind="dataset",
        origin="cais/mmlu",
        hub=True,
        files=(
            File(name="all/dev-00000-of-00001.parquet"),
            File(name="all/validation-00000-of-00001.parquet"),
            File(name="all/test-00000-of-00001.parquet"),
        ),
        # The mirror's archive holds the original header-less CSV files; its SHA-256 is
        # a07612970b0e68d4fa190489104327c6a7e7346c0ffae7c7363b47bf6c10dcf2 (1,565,468 bytes).
        mirror=("eval/mmlu/mmlu.tar.xz", "eval/mmlu"),
        licence="MIT",
        loader="cs336.catalog_loaders.read_mmlu",
    ),
    Entry(
        name="gsm8k",
        what="GSM8K: grade-school mathematics; train 7,473, test 1,319 problems",
        kind="dataset",
        origin="github.com/openai/grade-school-math",
        files=(
            File(
                name="train.jsonl",
                url=f"{_GSM8K}/train.jsonl",
                mirror="eval/gsm8k/train.jsonl.gz",
                sha256="17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
                num_bytes=4_166_206,
                mirror_sha256="d52a31668743a4f18e4a284514e54eea07a06ae31fcf4293af2506c198c05bda",
            ),
            File(
                name="test.jsonl",
                url=f"{_GSM8K}/test.jsonl",
                mirror="eval/gsm8k/test.jsonl.gz",
                sha256="3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
                num_bytes=749_738,
                mirror_sha256="bb13a52c31b1fa4805ebab294dce067e337ccd4b61c3e6461c85c92965282c62",
            ),
        ),
        revision="3101c7d5072418e28b9008a6636bde82a006892c",
        licence="MIT",
        loader="cs336.catalog_loaders.read_gsm8k",
    ),
    Entry(
        name="math",
        what="MATH: competition mathematics with final answers; train 7,500, test 5,000 problems",
        kind="dataset",
        origin="github.com/fadibenz/llm-alignment-reasoning-RL",
        files=(
            File(
                name="train_answers.jsonl",
                url=f"{_MATH}/train.jsonl",
                mirror="eval/math/train_answers.jsonl.gz",
                sha256="a2aeb55ae22acf0f897e86d03fa5232885b0b72f6cf741597ea55d9158229372",
                num_bytes=2_584_853,
                mirror_sha256="efcd1e42afcaa9738b7a6b122ee8f28e78b305a65c8510981a8b75b7dd7d54df",
            ),
            File(
                name="test_answers.jsonl",
                url=f"{_MATH}/validation.jsonl",
                mirror="eval/math/test_answers.jsonl.gz",
                sha256="040e047dad9c4f70ccfe830063038a73e9d827a3aba7752f3d8f506e3da4c684",
                num_bytes=1_623_116,
                mirror_sha256="1660d0d5317d7873aaf5b492501b15300578b038ba13942c192abfe575568507",
            ),
        ),
        revision="377d6e5bd725ba7700c0f8587ee743933dd8a04e",
        licence="MIT (hendrycks/math)",
        loader="JSON Lines: problem, answer, level, subject, unique_id",
    ),
    Entry(
        name="math-sft",
        what="MATH training problems with model-written <think> and <answer> spans, r1_zero prompt",
        kind="dataset",
        origin="github.com/fadibenz/llm-alignment-reasoning-RL",
        files=(
            File(
                name="math_think_traces_a.jsonl",
                url=f"{_MATH}/sft.jsonl",
                mirror="sft/math_think_traces_a.jsonl.gz",
                mirror_sha256="a2fa8ea55608765039381102f1ac57ff226581c50b60a632fb17d66e8f87b3d9",
            ),
        ),
        revision="377d6e5bd725ba7700c0f8587ee743933dd8a04e",
        licence="unstated",
        loader="JSON Lines: prompt, response, ground_truth",
    ),
    Entry(
        name="icl-tasks",
        what="twelve in-context-learning tasks of LLM Foundry (ARC, COPA, LAMBADA, PIQA, ...)",
        kind="dataset",
        origin="github.com/mosaicml/llm-foundry",
        files=(
            _icl(
                "world_knowledge/arc_challenge",
                "1ae3aeedf1951d881cbd5c2e3a31e78a1993d251479afbe4cb413b6707244636",
                365_606,
                "bb5b6600815d9fcbe28f2a339c898dfc95c0b98779b98fad1b9fc5947e2d687a",
            ),
            _icl(
                "world_knowledge/arc_easy",
                "d2d12e59543acf9a5ef6079634a72b30215e36c2fd4236fff3bc855d287b87f5",
                636_665,
                "2049365d85dfab856e970e8f673bd9287deea6d51df073cd31b36e1ff944d0f1",
            ),
            _icl(
                "commonsense_reasoning/commonsense_qa",
                "2771f63f8127c0725b1f6b0ef2cd2ef6469168ae5875fc8d276b25b4f32c8c1a",
                258_861,
                "2e09e70b7d3daf0375102ef48dcafd012ca3619ea34cc3c19ed6afad412fea66",
            ),
            _icl(
                "commonsense_reasoning/copa",
                "595dca44dec54c849490bd403a3e24a29e3b944065783222ebb0eb1a55298846",
                14_627,
                "0abbfad3da24bd29031df9354534984efac76ced7edf6bbd7f95caeec0696b27",
            ),
            _icl(
                "language_understanding/lambada_openai",
                "411bfbe5b9054346b6a19299c0242670adbefb9162efd958593cbc0290b8c9dc",
                1_895_241,
                "5b9bcae665c693d99dfd41efa62619b4ba24cc0913a3d39eae0cd546cece58b1",
            ),
            _icl(
                "commonsense_reasoning/openbook_qa",
                "adb2e5c7f8db810ddad4d6b2bf53dcc86dcc545499f7aafcaf42a8e179476c09",
                88_043,
                "67152e7d5827d40dd3e9aa64f7c0c66f234a89642070f776c94d5836e5c64164",
            ),
            _icl(
                "commonsense_reasoning/piqa",
                "d2870e73aec5154df3faf259b7700876e11608eebdf69e9d6667435673dbe4e0",
                533_992,
                "98248dd781a9e637b89c962c87a33c82e00173658337baeb2d967e6ca1e47107",
            ),
            _icl(
                "symbolic_problem_solving/simple_arithmetic_nospaces",
                "2b68696de9e381e9bddbd0af21dfd745400903b0ca5abf1b500143315b443228",
                51_711,
                "db281f8faee9c4b3ae71a8297a38032caf1402d6c0ec54ce014dacbfe6c8def2",
            ),
            _icl(
                "symbolic_problem_solving/svamp",
                "6e9d75302c2663a8c8ce48927d784244480bc75cd0eda539677b6a92a2ff5b97",
                70_844,
                "63f4874c3eef98cfd77016e49021040628490964c0fbe98d4b43dba05ea8b56a",
            ),
            _icl(
                "world_knowledge/triviaqa_small",
                "a484b8f1da8b890dab1d1501b0cafac7ffa2c694a9f234125482b103f3c6fa09",
                11_918,
                "0e91a9015f12c7d7ff176435c96755ae244c20573f8dfe5cf4a84343b275d4d2",
            ),
            _icl(
                "language_understanding/winograd_wsc",
                "746336c27cd2e39a554cb1b8b4869d0f1ae2577ac5bfe799842d26bca5a5bf5e",
                60_523,
                "72a2c101a88323ac4d63bfa582a240bddd76764b08042989326aee5fdbe34d7c",
            ),
            _icl(
                "language_understanding/winogrande",
                "ea1592526f3bfdd0948ed3acb1b4dfa3f83d23698917118688ee1df7f8d4b8d7",
                312_369,
                "58b248aa68956013ad6ae5a6025c6721b4f04ac8d3175666ae48465796865188",
            ),
        ),
        revision="8c8dd48f72168c5d51e2f7b151595892a8fba43d",
        licence="Apache-2.0 (repository); each task keeps its own",
        loader="JSON Lines of one form per task type",
    ),
    # ---- chat: quality, safety, preference ----
    Entry(
        name="alpaca-eval",
        what="AlpacaEval: 805 instructions with reference outputs",
        kind="dataset",
        origin="github.com/stanford-cs336/assignment5-alignment",
        files=(
            File(
                name="alpaca_eval.jsonl",
                url=f"{_ALIGNMENT}/alpaca_eval/alpaca_eval.jsonl",
                mirror="eval/alpaca_eval/alpaca_eval.jsonl.gz",
                sha256="9f3cf318fe67b3a7eec7c26260d7654ea17917cc5d1d00eeecc2d70709ba5193",
                num_bytes=602_261,
                mirror_sha256="586761aaf2d153e8c5189eaf2e8e49ca120e94515dc68aefc19a8c5d71b8cad0",
            ),
        ),
        revision="eb2c562e05802d3c9ee4c4ec2eec43b104d77e9e",
        licence="CC-BY-NC-4.0",
        loader="cs336.catalog_loaders.read_alpaca_eval",
    ),
    Entry(
        name="simple-safety-tests",
        what="SimpleSafetyTests: 100 prompts over 5 areas of harm",
        kind="dataset",
        origin="github.com/stanford-cs336/assignment5-alignment",
        files=(
            File(
                name="simple_safety_tests.csv",
                url=f"{_ALIGNMENT}/simple_safety_tests/simple_safety_tests.csv",
                mirror="eval/simple_safety_tests/simple_safety_tests.csv",
                sha256="6d95a1301e0d0f3a3c4cf5392f4afff11ad6e3066f95d23aaa138d44aedf986c",
                num_bytes=12_610,
                mirror_sha256="6d95a1301e0d0f3a3c4cf5392f4afff11ad6e3066f95d23aaa138d44aedf986c",
            ),
        ),
        revision="eb2c562e05802d3c9ee4c4ec2eec43b104d77e9e",
        licence="CC-BY-4.0",
        loader="cs336.catalog_loaders.read_simple_safety_tests",
    ),
    Entry(
        name="alpaca-eval-preferences",
        what="AlpacaEval: outputs of GPT-4 Turbo and of four models, and which the GPT-4 Turbo judge preferred",
        kind="dataset",
        origin="github.com/tatsu-lab/alpaca_eval, results/*/weighted_alpaca_eval_gpt4_turbo; only in a mirror",
        files=(
            File(
                name="alpaca_eval_OpenHermes-2.5-Mistral-7B.jsonl",
                mirror="preference/alpaca_eval_OpenHermes-2.5-Mistral-7B.jsonl.gz",
                mirror_sha256="86102a2206e0c1619d47525e9d91a565d351abce413d921c6e8e15a4e600b804",
            ),
            File(
                name="alpaca_eval_claude-instant-1.2.jsonl",
                mirror="preference/alpaca_eval_claude-instant-1.2.jsonl.gz",
                mirror_sha256="6bd24a13f5745ada38d332a53b3e7602285431fd69e12d57151ca546714d30a6",
            ),
            File(
                name="alpaca_eval_gemma-7b-it.jsonl",
                mirror="preference/alpaca_eval_gemma-7b-it.jsonl.gz",
                mirror_sha256="a5c8120aeb91dab7541087f223ee62b869a3885144544fcba15e676975d90802",
            ),
            File(
                name="alpaca_eval_vicuna-7b-v1.5.jsonl",
                mirror="preference/alpaca_eval_vicuna-7b-v1.5.jsonl.gz",
                mirror_sha256="c212e47f015cd780ade46201b3029b13efca1fb6642c90b21e5c77ad5d1e5ac7",
            ),
        ),
        revision="cd543a149df89434d8a54582c0151c0b945c3d20",
        licence="Apache-2.0; AlpacaEval data CC-BY-NC-4.0",
        loader="cs336.evals.alpaca_eval.read_annotations",
    ),
    Entry(
        name="hh-rlhf",
        what="Anthropic HH: human preferences between two dialogues, four training sets (offensive text)",
        kind="dataset",
        origin="Anthropic/hh-rlhf",
        hub=True,
        files=tuple(
            File(name=f"{subset}/train.jsonl.gz", mirror=f"preference/hh-rlhf/{subset}/train.jsonl.gz")
            for subset in ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
        ),
        licence="MIT",
        loader="JSON Lines: chosen, rejected",
    ),
    Entry(
        name="hh-rlhf-harmless-test",
        what="Anthropic HH, harmless-base, test split: 2,312 pairs (offensive text)",
        kind="dataset",
        origin="github.com/anthropics/hh-rlhf",
        files=(
            File(
                name="hh_rlhf_harmless_base_test.jsonl.gz",
                url=f"{_HH}/harmless-base/test.jsonl.gz",
                mirror="preference/hh_rlhf_harmless_base_test.jsonl.gz",
                sha256="ebfaaed21162a4de120ae85366075b34425e2a6303fac59b99555002f7016f03",
                num_bytes=742_801,
                mirror_sha256="ebfaaed21162a4de120ae85366075b34425e2a6303fac59b99555002f7016f03",
            ),
        ),
        revision="354e5c3cb8960630860dd5774a6ac2a58313bf4d",
        licence="MIT",
        loader="JSON Lines: chosen, rejected",
    ),
    Entry(
        name="ultrachat-safety",
        what="UltraChat-200K with SafetyTunedLlamas, single turns (safety_augmented_ultrachat_200k_single_turn)",
        kind="dataset",
        origin="the course's alignment supplement; no public address is known to this project",
        files=tuple(
            File(name=f"{split}.jsonl.gz", mirror=f"sft/safety_augmented_ultrachat_200k_single_turn/{split}.jsonl.gz")
            for split in ("train", "test")
        ),
        licence="MIT (UltraChat-200K), CC-BY-NC-4.0 (SafetyTunedLlamas)",
        loader="JSON Lines: prompt, response",
    ),
    Entry(
        name="t0-sample",
        what="T0 (P3): 20,000 instructions of 283 templates over labelled data sets, with short answers",
        kind="dataset",
        origin="github.com/yizhongw/self-instruct, data/finetuning/t0_train_50k, a random sample; only in a mirror",
        files=(
            File(
                name="t0_sample.jsonl",
                mirror="sft/t0_sample.jsonl.gz",
                mirror_sha256="cdf053c494920ad277fdd2c329bed2a17f84a9973f477daf8a1e6fdc374d8e0e",
            ),
        ),
        revision="0b26ccaa415992100fa32df62d41b994cf928e23",
        licence="Apache-2.0 (repository and prompts); source data sets vary",
        loader="cs336.posttrain.instructions",
    ),
    Entry(
        name="alpaca-demo",
        what="Alpaca: 999 instructions with answers",
        kind="dataset",
        origin="github.com/hiyouga/LLaMA-Factory, data/alpaca_en_demo.json; only in a mirror",
        files=(
            File(
                name="llamafactory_alpaca_en_demo.json",
                mirror="sft/llamafactory_alpaca_en_demo.json.gz",
                mirror_sha256="6adab528a420a0499db88977d1bf04721634af555936254f831b5426dcc14d53",
            ),
        ),
        revision="ff6d4d12eeb035d6ce06805a5733dd7b29f2ac30",
        licence="Apache-2.0 (repository); Alpaca data CC-BY-NC-4.0",
        loader="cs336.posttrain.instructions",
    ),
    # ---- models ----
    Entry(
        name="qwen2.5-math-1.5b",
        what="Qwen2.5-Math-1.5B base: where reasoning RL starts",
        kind="model",
        origin="Qwen/Qwen2.5-Math-1.5B",
        hub=True,
        patterns=_WEIGHTS,
        mirror=("weights/Qwen2.5-Math-1.5B",),
        licence="Apache-2.0",
        loader="cs336.model.huggingface",
    ),
    Entry(
        name="llama-3.1-8b",
        what="Llama 3.1 8B base: where instruction tuning and DPO start",
        kind="model",
        origin="meta-llama/Llama-3.1-8B",
        hub=True,
        patterns=_WEIGHTS,
        mirror=("weights/Llama-3.1-8B",),
        licence="Llama 3.1 community licence",
        loader="cs336.model.huggingface",
        gated=True,
    ),
    Entry(
        name="llama-3.3-70b-instruct",
        what="Llama 3.3 70B Instruct: the judge of AlpacaEval and SimpleSafetyTests",
        kind="model",
        origin="meta-llama/Llama-3.3-70B-Instruct",
        hub=True,
        patterns=_WEIGHTS,
        mirror=("weights/Llama-3.3-70B-Instruct",),
        licence="Llama 3.3 community licence",
        loader="cs336.generate.vllm",
        gated=True,
    ),
)

ENTRIES: dict[str, Entry] = {entry.name: entry for entry in _ALL}
