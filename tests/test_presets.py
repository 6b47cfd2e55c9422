"""Built-in presets are complete; a user's own change what they name, and mistakes are named."""

from dataclasses import replace

import pytest

from cs336.crawl.common_crawl import CommonCrawl
from cs336.crawl.local_files import TextFiles, WarcFiles
from cs336.crawl.several import Several
from cs336.files import UserError
from cs336.fingerprint import digest
from cs336.model.accounting import count_parameters, training_memory
from cs336.model.transformer import ModelConfig
from cs336.preset_lookup import find_preset, preset_names
from cs336.presets import COURSE, LLAMA, PRESETS, TINY, TWO_B


@pytest.fixture
def presets(tmp_path, monkeypatch):
    path = tmp_path / "presets.toml"
    monkeypatch.setenv("CS336_PRESETS", str(path))
    return path.write_text


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_prompts_and_answers_share_the_context(preset):
    assert preset.evals.max_new_tokens < preset.model.context_length
    assert preset.bpe.vocab_size <= 65_536  # token ids are uint16


def test_llamas_weights_are_tuned_in_fp32_and_fit_on_the_gpu_that_is_named():
    sizes = {"d_model": 4_096, "num_layers": 32, "num_heads": 32, "num_kv_heads": 8, "d_ff": 14_336}
    shape = ModelConfig(vocab_size=128_256, context_length=4_096, **sizes)
    memory, bf16_copies = training_memory(shape), 2 * count_parameters(shape).total
    without_first_moments = memory.fixed - memory.optimizer_state // 2
    assert count_parameters(shape).total == 8_030_261_248 and LLAMA.instructions.dtype == "float32"
    assert {each.precision for each in (LLAMA.instruction_sft, LLAMA.dpo)} == {"bfloat16"}
    assert {each.optimizer for each in (LLAMA.instruction_sft, LLAMA.dpo)} == {"rmsprop"}
    h100, h200 = 80e9, 141e9
    assert memory.fixed + bf16_copies > h200 > without_first_moments + bf16_copies
    assert memory.fixed // 2 < h100 < without_first_moments


def test_course_is_the_first_handouts_model_and_budget():
    model, train = COURSE.model, COURSE.train
    assert (model.d_model, model.num_layers, model.num_heads, model.d_ff, model.context_length) == (
        512,
        4,
        16,
        1344,
        256,
    )
    assert train.batch_size * train.num_steps * model.context_length == 327_680_000
    assert COURSE.bpe.vocab_size == 10_000


def test_the_handouts_corpora_have_its_vocabularies_and_budgets():
    tinystories, low, owt = PRESETS["tinystories"], PRESETS["tinystories_low"], PRESETS["owt"]
    assert tinystories.model == low.model == owt.model == COURSE.model
    assert tinystories.train == owt.train == COURSE.train
    assert (low.train.batch_size, low.train.num_steps, low.model.context_length) == (32, 5_000, 256)
    assert [preset.bpe.vocab_size for preset in (tinystories, low, owt)] == [10_000, 10_000, 32_000]


@pytest.mark.parametrize("name", ["prose", "tinystories", "tinystories_low", "owt"])
def test_raw_presets_change_no_text(name):
    preset = PRESETS[name]
    assert preset.measured_filters == ("contaminated",) and preset.filters.max_eval_hits is None
    assert not preset.lines.enabled and preset.lines.min_words == 0 and not preset.minhash.enabled


def test_two_b_has_two_billion_parameters_and_twenty_tokens_for_each():
    model, vocab = TWO_B.model, TWO_B.bpe.vocab_size
    d = model.d_model
    parameters = 2 * vocab * d + model.num_layers * (4 * d * d + 3 * d * model.d_ff + 2 * d) + d
    assert parameters == pytest.approx(2.07e9, rel=0.005)
    tokens = TWO_B.train.batch_size * TWO_B.train.num_steps * model.context_length
    assert tokens == pytest.approx(20 * parameters, rel=0.001)


def test_the_data_assignments_training_is_the_handouts():
    preset = PRESETS["data_course"]
    shape = replace(preset.model, vocab_size=preset.bpe.vocab_size)
    total = count_parameters(shape).total
    assert total == pytest.approx(162.1e6, rel=0.001)
    assert total - 2 * 50_257 * 768 == pytest.approx(84.95e6, rel=0.001)
    train = preset.train
    assert train.batch_size * shape.context_length == 131_072 and train.num_steps == 100_000
    assert (train.betas, train.eps, train.weight_decay, train.decay_all) == ((0.9, 0.98), 1e-9, 0.1, False)
    assert (train.learning_rate, train.min_learning_rate, train.warmup_steps) == (1e-3, 1e-4, 1_000)
    assert train.precision == "bfloat16" and train.valid_in_float32
    assert preset.bpe.pretrained == "gpt2-vocab" and preset.validation == "paloma-c4-100"


def test_settings_of_a_preset_can_all_be_part_of_a_fingerprint():
    for preset in PRESETS.values():
        for name in ("extract", "quality", "filters", "lines", "minhash", "bpe", "split", "model", "train", "evals"):
            assert digest(getattr(preset, name))


def test_a_users_preset_changes_what_it_names_and_nothing_else(presets):
    presets(
        '[mine]\nbase = "tiny"\nseed = 3\nsource = {kind = "warc", paths = ["a/*.warc.gz"]}\n'
        "train = {num_steps = 7, learning_rate = 1}\nfilters = {languages = ['en', 'de'], gopher = {min_words = 9}}\n"
    )
    mine = find_preset("mine")
    assert mine.source == WarcFiles(paths=("a/*.warc.gz",))
    assert (mine.name, mine.seed, mine.train.num_steps, mine.train.learning_rate) == ("mine", 3, 7, 1.0)
    assert mine.filters.languages == ("en", "de") and mine.filters.gopher.min_words == 9
    assert mine.model == TINY.model and mine.train.batch_size == TINY.train.batch_size
    assert preset_names() == [*PRESETS, "mine"]


def test_a_preset_takes_away_what_may_be_none(presets):
    presets('[mine]\nbase = "mixture"\nheld_out = "none"\nfilters = {max_eval_hits = "none"}\n')
    mine = find_preset("mine")
    assert mine.held_out is None and mine.filters == replace(PRESETS["mixture"].filters, max_eval_hits=None)
    presets('[mine]\nbase = "tiny"\nfilters = {max_nsfw_score = "none"}\n')
    with pytest.raises(UserError, match="max_nsfw_score must be float, got 'none'"):
        find_preset("mine")


def test_presets_build_on_each_other_and_on_common_crawl(presets):
    presets(
        '[a]\nbase = "tiny"\n'
        'source = {kind = "common-crawl", snapshot = "CC-MAIN-2025-18", num_files = 2, files = "wet"}\n'
        '[b]\nbase = "a"\nsource = {num_files = 3}\n'
    )
    assert find_preset("b").source == CommonCrawl(snapshot="CC-MAIN-2025-18", num_files=3, kind="wet")


def test_several_sources_and_held_out_texts_are_described_by_kind(presets):
    presets(
        '[mine]\nbase = "tiny"\nheld_out = {kind = "text", paths = ["clean.jsonl"]}\n'
        'data_ablation = {num_seeds = 5}\n[mine.source]\nkind = "several"\n'
        'sources = [{kind = "warc", paths = ["a/*.warc.gz"]}, {kind = "text", paths = ["b.txt"], name_parts = 2}]\n'
        '[more]\nbase = "mixture"\nheld_out = {paths = ["other.jsonl"]}\n'
    )
    mine = find_preset("mine")
    assert mine.source == Several(
        sources=(WarcFiles(paths=("a/*.warc.gz",)), TextFiles(paths=("b.txt",), name_parts=2))
    )
    assert mine.held_out == TextFiles(paths=("clean.jsonl",)) and mine.data_ablation.num_seeds == 5
    assert find_preset("more").held_out == TextFiles(paths=("other.jsonl",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[mine]\nbase = "tiny"\nsource = {kind = "several"}\n', "needs sources"),
        ('[mine]\nbase = "tiny"\nsource = {kind = "several", sources = [{paths = ["a"]}]}\n', "source.kind is one of"),
        ('[mine]\nbase = "tiny"\nheld_out = {paths = ["a"]}\n', "source.kind is one of"),
        ("[mine]\nseed = 1\n", "needs base"),
        ('[mine]\nbase = "mine"\n', "based on itself"),
        ('[mine]\nbase = "tiny"\ntrain = {steps = 1}\n', "no setting 'steps'"),
        ('[mine]\nbase = "tiny"\nseed = "x"\n', "seed must be int"),
        ('[mine]\nbase = "tiny"\nsource = {kind = "ftp"}\n', "source.kind is one of local-docs"),
        ('[mine]\nbase = "tiny"\nsource = {kind = "warc", path = "x"}\n', "no setting 'path'"),
        ('[mine]\nbase = "tiny"\ntrain = {num_steps = 0}\n', "at least one step"),
        ('[mine]\nbase = "tiny"\nmeasured_filters = ["langauge"]\n', "measured_filters: there is no 'langauge'"),
        ('[mine]\nbase = "tiny"\nvalidation = "palomar"\n', "validation: there is no 'palomar'"),
        ('[mine]\nbase = "tiny"\nproblems = {num_train = 7}\n', "num_train is 7, but a batch of .* asks 8"),
        ('[mine]\nbase = "tiny"\nsplit = {valid_fraction = 2}\n', "valid_fraction 2.0 is not a share"),
        ('[mine]\nbase = "tiny"\nextract = {max_page_bytes = -1}\n', "max_page_bytes must be at least 1"),
        ('[mine]\nbase = "tiny"\nextract = {max_page_seconds = 0}\n', "max_page_seconds must be above 0"),
        ('[mine]\nbase = "tiny"\nextract = {max_page_seconds = nan}\n', "max_page_seconds must be above 0"),
        ('[mine]\nbase = "tiny"\nfilters = {min_language_confidence = 65}\n', "min_language_confidence is a share"),
        ('[mine]\nbase = "tiny"\nfilters = {min_language_confidence = nan}\n', "min_language_confidence is a share"),
        ('[mine]\nbase = "tiny"\nfilters = {min_quality_score = 2.0}\n', "min_quality_score is a share"),
        ('[mine]\nbase = "tiny"\nfilters = {max_eval_hits = -1}\n', "max_eval_hits must not be negative"),
        ('[mine]\nbase = "tiny"\nfilters = {languages = ["EN"]}\n', "languages are codes .* got 'EN'"),
        ('[tiny]\nbase = "course"\n', "built in"),
        ("[mine\n", "not valid TOML"),
        ("seed = 1\n", "outside any preset"),
        ('[mine]\nbase = "tiny"\nmodel = 5\n', "model is a table"),
        ('[mine]\nbase = "tiny"\nsource = "text"\n', "source is a table"),
        ('[mine]\nbase = "tiny"\nsource = {kind = "text"}\n', "needs paths"),
        ('[other]\nbase = "tiny"\n', "no preset 'mine'"),
        ('[mine]\nbase = "a-b"\n["a-b"]\nbase = "tiny"\n', "letters, digits and _ only"),
    ],
)
def test_mistakes_are_one_line_that_names_them(presets, text, message):
    presets(text)
    with pytest.raises(UserError, match=message) as caught:
        find_preset("mine")
    assert "\n" not in str(caught.value)


def test_a_preset_with_a_built_in_ones_name_is_refused_also_where_that_is_asked_for(presets):
    presets('[tiny]\nbase = "course"\nseed = 7\n')
    with pytest.raises(UserError, match=r"\[tiny\] is built in"):
        find_preset("tiny")
