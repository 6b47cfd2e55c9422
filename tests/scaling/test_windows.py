import numpy as np
import pytest
import torch

from cs336.files import UserError
from cs336.scaling.windows import Text, WindowOrder, on_device, read_windows
from cs336.tokens.shards import TOKEN_DTYPE
from tests.scaling.conftest import small_cell


def test_each_epoch_reads_every_window_once_in_an_order_of_its_own():
    order = WindowOrder(16 * 25 + 1, 16, seed=0)
    assert order.num_windows == 25
    starts = order.starts(0, 15, 5).flatten().tolist()  # three epochs
    epochs = [starts[begin : begin + 25] for begin in (0, 25, 50)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(0, 400, 16))
    assert epochs[0] != epochs[1] != epochs[2]
    assert order.epochs(75) == 3.0


def test_the_order_does_not_depend_on_the_batch_size_or_on_where_one_begins():
    every = WindowOrder(1_001, 10, seed=4).starts(0, 60, 4).flatten()
    assert torch.equal(WindowOrder(1_001, 10, seed=4).starts(0, 30, 8).flatten(), every)
    assert torch.equal(WindowOrder(1_001, 10, seed=4).starts(23, 20, 4).flatten(), every[23 * 4 : 43 * 4])
    assert not torch.equal(WindowOrder(1_001, 10, seed=5).starts(0, 60, 4).flatten(), every)


def test_windows_hold_the_text_and_its_next_tokens_for_all_16_bits():
    tokens = np.array([0, 1, 40_000, 65_535, 7, 32_768, 9], dtype=TOKEN_DTYPE)
    inputs, targets = read_windows(on_device(tokens, torch.device("cpu")), torch.tensor([0, 3]), 3)
    assert inputs.tolist() == [[0, 1, 40_000], [65_535, 7, 32_768]]
    assert targets.tolist() == [[1, 40_000, 65_535], [7, 32_768, 9]]


def test_a_text_too_short_or_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="do not fill a window"):
        WindowOrder(16, 16, seed=0)
    with pytest.raises(UserError, match=r"train\.bin"):
        Text.open([tmp_path])
    for name in ("train", "valid"):
        np.zeros(1, TOKEN_DTYPE).tofile(tmp_path / f"{name}.bin")
    with pytest.raises(UserError, match="1 training tokens"):
        Text.open([tmp_path])


def test_the_checksum_tells_texts_apart_and_not_how_they_are_cut(tmp_path):
    def made(name, *parts):
        folders = []
        for number, part in enumerate(parts):
            folder = tmp_path / name / str(number)
            folder.mkdir(parents=True)
            np.array(part, TOKEN_DTYPE).tofile(folder / "train.bin")
            np.array([1, 2], TOKEN_DTYPE).tofile(folder / "valid.bin")
            folders.append(folder)
        return Text.open(folders)

    def train_only(name, *parts):
        text = made(name, *parts)
        return text.checksum, len(text.train)

    one = made("one", [1, 2, 3, 4])
    assert one.checksum != made("other", [1, 2, 4, 3]).checksum
    assert train_only("again", [1, 2, 3, 4]) == (one.checksum, 4)
    with pytest.raises(UserError, match="token 4 is beyond the grid's vocabulary of 4"):
        one.check([small_cell(compute_budget=1.0, vocab_size=4, context_length=2)], max_epochs=1)
    one.check([small_cell(compute_budget=1.0, vocab_size=5, context_length=2)], max_epochs=1)
