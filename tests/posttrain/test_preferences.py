"""Preference pairs: each reason to drop one, the kept texts, and a split that shares no instruction."""

import gzip
import json

import pytest

from cs336.files import UserError
from cs336.posttrain.preferences import Preference, read_hh, split_preferences


def _dialogue(*messages):
    return "".join(f"\n\n{'Human' if n % 2 == 0 else 'Assistant'}: {text}" for n, text in enumerate(messages))


def _write(path, rows):
    path.parent.mkdir(exist_ok=True)
    text = "".join(json.dumps({"chosen": chosen, "rejected": rejected}) + "\n" for chosen, rejected in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_single_turns_are_kept_and_every_other_row_is_counted_with_its_reason(tmp_path):
    good = _dialogue("Hi\n\nthere ", "Human: is a name\n"), _dialogue("Hi\n\nthere", "No.")
    path = _write(
        tmp_path / "train.jsonl.gz",
        [
            good,
            (_dialogue("a", "b", "c", "d"), _dialogue("a", "b", "c", "e")),
            (_dialogue("a", "b"), _dialogue("a", "b", "c", "e")),  # the rejected side alone goes on
            (_dialogue("a", "b", "c", "d"), _dialogue("a", "b")),
            (_dialogue("a", "b"), _dialogue("x", "c")),
            (_dialogue("a", " "), _dialogue("a", "c")),
            (_dialogue("a", "c"), _dialogue("a", "")),
            (_dialogue("a", "c"), _dialogue("a", "c ")),
            (_dialogue(" ", "c"), _dialogue("", "d")),
            (_dialogue("a"), _dialogue("a", "b")),
            ("\n\nAssistant: a\n\nHuman: b", _dialogue("a", "b")),
            (_dialogue("a", "b") + "\n\nAssistant: c", _dialogue("a", "b")),
            ("x" + _dialogue("a", "b"), _dialogue("a", "c")),
        ],
    )
    kept, dropped = read_hh([path])
    assert kept == [Preference("Hi\n\nthere", "Human: is a name", "No.", "train.jsonl.gz")]
    assert dropped == {
        "more than one human message": 3,
        "human messages differ": 1,
        "empty reply": 2,
        "replies alike": 1,
        "empty human message": 1,
        "not a human message and a reply": 4,
    }


def test_files_are_combined_in_order_and_named(tmp_path):
    rows = [(_dialogue("a", "b"), _dialogue("a", "c"))]
    paths = [_write(tmp_path / subset / "train.jsonl", rows) for subset in ("harmless-base", "helpful-base")]
    kept, dropped = read_hh(paths)
    assert [each.source for each in kept] == ["harmless-base/train.jsonl", "helpful-base/train.jsonl"]
    assert dropped == {}


def test_another_kind_of_file_is_named(tmp_path):
    (tmp_path / "other.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    with pytest.raises(UserError, match=r"other\.jsonl: record 1 has no dialogues"):
        read_hh([tmp_path / "other.jsonl"])


def test_real_pairs(shared_data):
    """Of 2,312 rows 661 have one human message on both sides; 3 of those have an empty reply."""
    kept, dropped = read_hh([shared_data / "preference/hh_rlhf_harmless_base_test.jsonl.gz"])
    assert len(kept) + sum(dropped.values()) == 2_312
    assert dropped == {"more than one human message": 1_650, "empty reply": 3, "not a human message and a reply": 1}
    assert {each.source for each in kept} == {"hh_rlhf_harmless_base_test.jsonl.gz"}
    for each in kept:
        assert each.instruction and each.chosen and each.rejected and each.chosen != each.rejected
        assert not any(f"\n\n{who}:" in text for who in ("Human", "Assistant") for text in vars(each).values())


def test_no_instruction_is_on_both_sides_of_the_split():
    pairs = [Preference(f"question {n % 30}", f"good {n}", f"bad {n}", "file") for n in range(100)]
    train, valid = split_preferences(pairs, 20, seed=0)
    assert 20 <= len(valid) < 24 and len(train) + len(valid) == 100
    assert not {each.instruction for each in train} & {each.instruction for each in valid}
    assert train == [each for each in pairs if each in train]  # in their order
    assert split_preferences(pairs, 20, seed=0)[1] == valid != split_preferences(pairs, 20, seed=1)[1]
    with pytest.raises(ValueError, match="100 validation pairs of 100"):
        split_preferences(pairs, 100, seed=0)
