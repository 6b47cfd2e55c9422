"""Curves of runs side by side: what hides others is named or smoothed, and validations stay as they are."""

import pytest

from cs336_assets import reasoning_plots


@pytest.fixture
def panels(monkeypatch):
    """Draws runs and returns the axes by the beginning of their title."""

    def draw(runs, columns):
        figures = []
        monkeypatch.setattr(reasoning_plots, "save", lambda figure, path: figures.append(figure))
        reasoning_plots.run_panels(runs, columns, None)
        legends = [[text.get_text() for text in legend.get_texts()] for legend in figures[0].legends]
        return {axes.get_title().partition("\n")[0]: axes for axes in figures[0].axes}, legends

    return draw


def _run(*rewards, accuracy=0.5):
    steps = [{"step": 2 * step, "grpo_step": step, "reward": value} for step, value in enumerate(rewards, 1)]
    return [*steps, {"step": 2 * len(rewards), "grpo_step": len(rewards), "valid_accuracy": accuracy}]


def test_a_run_that_is_0_throughout_is_named_and_not_drawn(panels):
    axes, legends = panels({"grpo": _run(1, 1), "question-only": _run(0, 0, accuracy=0)}, ("valid_accuracy", "reward"))
    for each in axes.values():
        assert len(each.lines) == 1 and [text.get_text() for text in each.texts] == ["0 throughout: question-only"]
    assert legends == [["grpo"]]
    axes, legends = panels({"a": _run(0, 0), "b": _run(0, 0)}, ("reward",))
    assert len(axes["mean reward of rollouts"].lines) == 2 and legends == [["a", "b"]]  # nothing to hide there


def test_rewards_of_many_runs_are_means_of_five_steps(panels):
    rows = [*_run(0, 1, 1, 1, 1, 1, 0), {"step": 14, "grpo_step": 7, "reward": 1}]  # two updates in the last step
    axes, _ = panels(dict.fromkeys("abcd", rows), ("valid_accuracy", "reward"))
    line = axes["mean reward of rollouts"].lines[0]
    assert list(line.get_xdata()) == [1, 2, 3, 4, 5, 6, 7]
    assert list(line.get_ydata()) == pytest.approx([0, 1 / 2, 2 / 3, 3 / 4, 4 / 5, 1, 4.5 / 5])
    assert list(axes["accuracy, held out"].lines[0].get_ydata()) == [0.5]
    few, _ = panels(dict.fromkeys("abc", rows), ("reward",))
    assert list(few["mean reward of rollouts"].lines[0].get_ydata()) == [0, 1, 1, 1, 1, 1, 0, 1]


def test_scores_of_seeds_stand_best_on_top_and_0_is_told(monkeypatch):
    figures = []
    monkeypatch.setattr(reasoning_plots, "save", lambda figure, path: figures.append(figure))
    scores = {"worse": (0.5, 0.4, 0.6), "nothing": (0.0, 0.0, 0.1), "best": (0.8, 0.7, 0.9)}
    reasoning_plots.scores_over_seeds(scores, {"worse": [0.3, 0.7], "best": [0.8], "nothing": [0.0, 0.0]}, None)
    (axes,) = figures[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["nothing", "worse", "best"]
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert ([0.3, 0.7], [1, 1]) in drawn and ([0.8], [2]) in drawn and ([0.5], [1]) in drawn
    assert [text.get_text() for text in axes.texts] == ["0 %"] and axes.get_xlim()[0] > 0.2
