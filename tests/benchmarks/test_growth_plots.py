"""Plots of growth: of work measured in several sizes, and only of that."""

from benchmarks.growth_plots import draw_growth_of


def row(case, pages, figure=1.0, peak_bytes=None):
    return {
        "case": case,
        "contender": "ours",
        "unit": "pages/s",
        "input": {"pages": pages},
        "figure": figure,
        "peak_bytes": peak_bytes,
    }


def test_a_plot_needs_two_sizes_of_the_same_work(tmp_path):
    rows = [row("wet-cores2-300", 300), row("wet-cores2-1000", 1_000, peak_bytes=10**8), row("warc-cores2-300", 300)]
    rows += [row("warc-cores2-300-rank", 300), {"case": "warc-cores2-1000", "error": "not installed"}]
    prefixes = {"wet": "wet-cores2-", "warc": "warc-cores2-"}
    assert draw_growth_of(rows, prefixes, "pages", tmp_path) == [tmp_path / "wet.png"]
    assert (tmp_path / "wet.png").read_bytes().startswith(b"\x89PNG")
