"""The literature computed again: what agrees, and the one that does not."""

import pytest

from cs336.scaling import published


@pytest.fixture(scope="module")
def compared():
    return published.compare()


def test_the_tables_sizes_cost_their_budgets_with_the_tokens_of_approach_2():
    """C = 6 N D: their table A3 gives 219.5 B tokens for 10 B parameters, 26.5 T for 1 T."""
    compute = dict(zip(published.CHINCHILLA_SIZES, published.CHINCHILLA_COMPUTE["approach 2"], strict=True))
    assert compute[10e9] == pytest.approx(6 * 10e9 * 219.5e9, rel=0.01)
    assert compute[1e12] == pytest.approx(6 * 1e12 * 26.5e12, rel=0.01)


def test_all_but_one_figure_agree_within_rounding(compared):
    disagree = [each.what for each in compared if not each.agrees]
    assert disagree == ["Chinchilla approach 2: a, from its rounded law by our parabola fit"]
    assert len(compared) == 10


def test_the_law_is_found_again_from_its_own_losses(compared):
    found = {each.what[-5:].strip(": "): each.ours for each in compared if "sampled" in each.what}
    assert list(found.values()) == pytest.approx([1.69, 0.34, 0.28], abs=1e-6)


def test_two_laws_of_one_paper_disagree(compared):
    """The law's own optimum grows as C^(0.28/0.62), whichever approach reads it."""
    ours = [each.ours for each in compared if "rounded law by our" in each.what]
    assert ours == pytest.approx([0.28 / 0.62] * 2, abs=0.001)


def test_the_page_has_a_line_for_each(compared, monkeypatch):
    monkeypatch.setattr(published, "compare", lambda: compared)
    lines = published.page().strip().splitlines()
    assert len(lines) == 2 + len(compared)
    assert "| 216 M" in lines[-2] and "265 M" in lines[-2]
