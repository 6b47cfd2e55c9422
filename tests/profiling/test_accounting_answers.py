"""The written answers say what the formulas give."""

import pytest

from cs336.parallel.cost_model import TwoLayerModel
from cs336.profiling.accounting_answers import accounting_answers, fewest_devices, limits, page, xxl_answers


@pytest.mark.parametrize("limit", limits(), ids=lambda limit: limit.name)
def test_each_limit_is_tight(limit):
    last = int(limit.devices)
    assert limit.cost(last).compute_bound and not limit.cost(last + 1).compute_bound


def test_every_question_has_a_formula_a_reason_and_an_example():
    answers = [*accounting_answers(), *xxl_answers()[:3]]
    assert len(answers) == 12 and all(answer.formula and answer.reason and answer.example for answer in answers)


def test_xxls_figures_are_the_handouts():
    said = page()
    for figure in (
        "219.8 B parameters: 3.52 TB, 44 H100s",
        "from N_FSDP = 38 on",
        "20,444 tokens in all, 319 a device",
    ):
        assert figure in said, figure
    assert said.count("arXiv:") >= 4


def test_devices_are_counted_up_to_the_first_that_fits():
    model = TwoLayerModel()
    found = fewest_devices(model, 1_000, 95e9)
    assert model.device_bytes(found, 1_000) < 95e9 <= model.device_bytes(found - 1, 1_000)
    with pytest.raises(ValueError, match="alone fill 95 GB"):
        fewest_devices(model, 20_000, 95e9)
