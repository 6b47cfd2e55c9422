import csv
import gzip
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from cs336.catalog_loaders import read_alpaca_eval, read_gsm8k, read_mmlu, read_simple_safety_tests
from cs336.files import UserError

QUESTIONS = {
    "world_religions": [["Who, if\nanyone?", "a", "b", 'c "quoted"', "d, e", "D"]],
    "abstract_algebra": [["1+1?", "1", "2", "3", "4", "B"], ["2+2?", "1", "2", "3", "4", "D"]],
}
EXPECTED = [
    {"subject": "abstract algebra", "question": "1+1?", "options": ["1", "2", "3", "4"], "answer": "B"},
    {"subject": "abstract algebra", "question": "2+2?", "options": ["1", "2", "3", "4"], "answer": "D"},
    {
        "subject": "world religions",
        "question": "Who, if\nanyone?",
        "options": ["a", "b", 'c "quoted"', "d, e"],
        "answer": "D",
    },
]


def csv_text(rows: list[list[str]]) -> str:
    file = io.StringIO(newline="")
    csv.writer(file).writerows(rows)
    return file.getvalue()


def write_mmlu(folder: Path, split: str) -> None:
    (folder / split).mkdir(parents=True)
    for subject, rows in QUESTIONS.items():
        (folder / split / f"{subject}_{split}.csv").write_text(csv_text(rows), newline="")


def test_mmlu_reads_the_same_from_a_folder_an_archive_and_the_hubs_parquet(tmp_path):
    write_mmlu(tmp_path / "folder", "val")
    with tarfile.open(tmp_path / "mmlu.tar.xz", "w:xz") as archive:
        for path in sorted((tmp_path / "folder" / "val").iterdir(), reverse=True):  # no order is promised
            archive.add(path, arcname=f"mmlu/val/{path.name}")
    (tmp_path / "hub" / "all").mkdir(parents=True)
    rows = [
        {"question": row[0], "subject": subject, "choices": row[1:5], "answer": "ABCD".index(row[5])}
        for subject, questions in QUESTIONS.items()
        for row in questions
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "hub" / "all" / "validation-00000-of-00001.parquet")
    for path in (tmp_path / "folder", tmp_path / "mmlu.tar.xz", tmp_path / "hub"):
        assert read_mmlu(path, "val") == EXPECTED
        assert read_mmlu(path, "validation") == EXPECTED


def test_mmlu_mistakes_are_named(tmp_path):
    write_mmlu(tmp_path, "test")
    with pytest.raises(ValueError, match="no split 'train'; choose dev, val or test"):
        read_mmlu(tmp_path, "train")
    with pytest.raises(UserError, match="holds no MMLU questions of split dev"):
        read_mmlu(tmp_path, "dev")
    (tmp_path / "test" / "law_test.csv").write_text("q,a,b,c,d,A\nq,a,b,c,d,E\n")
    with pytest.raises(UserError, match=r"law_test\.csv, row 2: not a question"):
        read_mmlu(tmp_path, "test")
    (tmp_path / "broken.tar.xz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="not a readable tar archive"):
        read_mmlu(tmp_path / "broken.tar.xz", "test")
    with pytest.raises(UserError, match="not found"):
        read_mmlu(tmp_path / "none.tar", "test")


def test_gsm8k_is_read_from_a_folder_or_a_file_and_a_bad_row_is_an_error(tmp_path):
    row = {"question": "1+1?", "answer": "So.\n#### 2"}
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode() + b"\n\n"))
    assert read_gsm8k(tmp_path, "train") == [row]
    assert read_gsm8k(tmp_path / "train.jsonl.gz", "train") == [row]
    with pytest.raises(UserError, match=r"holds no test\.jsonl"):
        read_gsm8k(tmp_path, "test")
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + '\n{"question": "1+1?"}\n')
    with pytest.raises(UserError, match=r"test\.jsonl:2: no text field 'answer'"):
        read_gsm8k(tmp_path, "test")
    (tmp_path / "test.jsonl").write_text("{\n")
    with pytest.raises(UserError, match=r"test\.jsonl:1: not valid JSON"):
        read_gsm8k(tmp_path, "test")


def test_alpaca_eval_is_read_from_lines_and_from_one_list(tmp_path):
    rows = [{"instruction": f"Do {n}.", "output": "Done.", "generator": "old", "dataset": "x"} for n in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert read_alpaca_eval(tmp_path / "a.jsonl") == rows == read_alpaca_eval(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[{}]")
    with pytest.raises(UserError, match=r"a\.json: item 1: no text field 'instruction'"):
        read_alpaca_eval(tmp_path / "a.json")


def test_safety_tests_without_their_columns_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("id,prompt\n1,x\n")
    with pytest.raises(UserError, match="every row needs id, harm_area, counter, category, prompts_final"):
        read_simple_safety_tests(tmp_path / "a.csv")


def test_real_gsm8k_has_its_rows_and_every_answer_ends_in_a_number(shared_data):
    train = read_gsm8k(shared_data / "eval" / "gsm8k", "train")
    test = read_gsm8k(shared_data / "eval" / "gsm8k", "test")
    assert (len(train), len(test)) == (7_473, 1_319)
    for row in [*train, *test]:
        float(row["answer"].rpartition("#### ")[2].replace(",", ""))


def test_real_mmlu_has_its_rows_in_57_subjects(shared_data):
    splits = {
        split: read_mmlu(shared_data / "eval" / "mmlu" / "mmlu.tar.xz", split) for split in ("dev", "val", "test")
    }
    assert {split: len(rows) for split, rows in splits.items()} == {"dev": 285, "val": 1_531, "test": 14_042}
    for rows in splits.values():
        subjects = [row["subject"] for row in rows]
        assert subjects == sorted(subjects) and len(set(subjects)) == 57
    assert set(Counter(row["subject"] for row in splits["dev"]).values()) == {5}


def test_real_alpaca_eval_and_safety_tests_have_their_rows(shared_data):
    instructions = read_alpaca_eval(shared_data / "eval" / "alpaca_eval" / "alpaca_eval.jsonl.gz")
    assert len(instructions) == 805
    prompts = read_simple_safety_tests(shared_data / "eval" / "simple_safety_tests" / "simple_safety_tests.csv")
    assert sorted(Counter(row["harm_area"] for row in prompts).values()) == [20] * 5
    assert set(prompts[0]) == {"id", "harm_area", "counter", "category", "prompt"}
    assert len({row["id"] for row in prompts}) == len({row["prompt"] for row in prompts}) == 100
