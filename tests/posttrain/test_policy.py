"""Models are told apart, kept and read back, ours and transformers'."""

import pytest
import torch

from cs336.hardware import device_of
from cs336.model.transformer import load_model
from cs336.posttrain.policy import autocast, longest_row, mark_of_rows, mark_of_weights, save_policy
from tests.posttrain.models import CONTEXT, MODELS, Saved, assert_same_weights, our_model, their_model, weights


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_and_its_tokenizer_are_read_back_from_one_folder(kind, tmp_path):
    model = MODELS[kind]()
    save_policy(model, Saved(), tmp_path)
    if kind == "ours":
        read = load_model(tmp_path)
    else:
        import transformers

        read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same_weights(weights(read), weights(model))
    assert (tmp_path / "letters.txt").exists()


def test_without_a_tokenizer_the_model_alone_is_written(tmp_path):
    save_policy(our_model(), None, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_another_weight_or_type_is_another_mark():
    mark = mark_of_weights(our_model())
    assert mark == mark_of_weights(our_model()) != mark_of_weights(our_model(seed=1))
    changed = our_model()
    with torch.no_grad():
        changed.lm_head.weight[-1, -1] += 1e-3
    assert mark_of_weights(changed) != mark
    ones = torch.nn.Linear(3, 2, bias=False)
    torch.nn.init.ones_(ones.weight)
    assert mark_of_weights(ones) != mark_of_weights(ones.bfloat16())


def test_rows_are_told_apart_by_their_ends_too():
    assert mark_of_rows([[1, 2], [3]]) == mark_of_rows([[1, 2], [3]])
    assert len({mark_of_rows(rows) for rows in ([[1, 2], [3]], [[1], [2, 3]], [[1, 2, 3]], [[1, 2], [3], []])}) == 4


def test_where_a_model_is_and_what_it_holds():
    assert longest_row(our_model()) == CONTEXT + 1 and longest_row(their_model()) is None
    assert device_of(our_model()).type == "cpu"


def test_precision_is_that_of_matrix_products():
    x = torch.ones(2, 2)
    with autocast(x.device, "bfloat16"):
        assert (x @ x).dtype == torch.bfloat16
    with autocast(x.device, "float32"):
        assert (x @ x).dtype == torch.float32
