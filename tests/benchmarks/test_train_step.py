"""The training-step benchmark at a tiny shape: the peer starts from our weights, so its first loss is ours."""

import argparse
import json

import pytest

from benchmarks import train_step
from benchmarks.measure import run_subject


def _run(folder, *arguments):
    parser = argparse.ArgumentParser()
    train_step.add_arguments(parser)
    shared = ["--preset", "tiny", "--vocab-size", "300", "--batch-size", "1", "--device", "cpu", "--no-compile"]
    options = parser.parse_args([*shared, *arguments])
    assert run_subject("train_step", train_step, argparse.Namespace(**vars(options), repeats=1, results=folder)) == 0
    return [json.loads(line) for line in (folder / "train_step.jsonl").read_text().splitlines()]


def test_ours_and_transformers_begin_with_the_same_loss(tmp_path):
    pytest.importorskip("transformers")
    rows = _run(tmp_path)
    assert [row["contender"] for row in rows] == ["ours", "transformers"]
    assert not [row["failure"] for row in rows if "failure" in row]
    assert rows[0]["ratios"]["transformers"] > 0


def test_a_peer_with_another_loss_is_left_out(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    twin = train_step.transformers_twin

    def spoilt(model):
        theirs = twin(model)
        theirs.lm_head.weight.data.mul_(2)
        return theirs

    monkeypatch.setattr(train_step, "transformers_twin", spoilt)
    assert "first loss" in _run(tmp_path)[1]["failure"]


def test_kernels_are_told_apart():
    assert train_step.kind_of("nvjet_sm90_tst_192x192_64x3_2x1_v_bz_coopB_NNN") == "matrix products"
    assert train_step.kind_of("cudnn_generated_fort_native_sdpa_sm90_flash_bprop") == "attention"
    assert train_step.kind_of("triton_poi_fused__unsafe_view_mul_sigmoid_7") == "compiled elementwise, norms, softmax"
    assert train_step.kind_of("void at::native::multi_tensor_apply_kernel") == "optimizer and clipping"
    assert train_step.kind_of("something new") == "other"
