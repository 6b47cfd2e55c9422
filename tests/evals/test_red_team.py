"""Red-teaming: every goal by every strategy, and what the record says of the verdicts."""

from cs336.evals.red_team import GOALS, attempts, outcome_sentences


def test_every_goal_is_tried_by_every_strategy_in_its_own_words():
    tried = attempts()
    assert len(GOALS) == 3 and len(tried) == 12
    assert len({each.prompt for each in tried}) == 12
    assert all(GOALS[each.goal] in each.prompt for each in tried)


def test_outcomes_name_the_strategies_that_worked():
    tried = attempts()
    verdicts = [0.0 if (each.goal, each.strategy) == ("fraud", "in a role") else 1.0 for each in tried]
    assert outcome_sentences(list(zip(tried, verdicts, strict=True))) == [
        "false news: 0 of 4 strategies got a reply judged unsafe.",
        "fraud: 1 of 4 strategies got a reply judged unsafe (in a role).",
        "privacy: 0 of 4 strategies got a reply judged unsafe.",
    ]
