"""Pairs of a model's own answers: what makes one, what has none, and what is counted."""

from cs336.evals.generated_tasks import GeneratedConfig, generate_problems
from cs336.generate.backend import Generation, Sample
from cs336.posttrain.sampled_pairs import sampled_pairs
from cs336.tokens.chat import alpaca_prompt

PROBLEMS = generate_problems(GeneratedConfig(levels=(1,)), "train", 4)


class Answers:
    """A backend whose answers are known; RIGHT stands for the problem's own."""

    def __init__(self, answers):
        self.answers = answers

    def generate(self, prompts, params, *, progress):
        self.prompts, self.params = prompts, params
        return [
            Generation(
                [], [Sample(text.replace("RIGHT", str(problem.answer)), [], None, finish) for text, finish in answers]
            )
            for problem, answers in zip(PROBLEMS, self.answers, strict=True)
        ]


def test_a_right_answer_stands_before_a_wrong_one_of_the_same_problem():
    backend = Answers(
        [
            [(" a #### RIGHT ", "end"), ("b #### 100000", "end"), ("c", "end")],
            [("#### RIGHT", "end"), ("d #### RIGHT", "end"), ("#### 100000", "length")],  # cut off: not wrong
            [("#### RIGHT", "length"), ("#### 100000", "end"), ("", "end")],  # cut off: not right
            [("#### 100000", "end"), ("#### 1", "length"), ("#### RIGHT.", "end")],
        ]
    )
    pairs, counts = sampled_pairs(PROBLEMS, backend, 3, seed=0)
    instructions = [f"{problem.question}\nAnswer:" for problem in PROBLEMS]
    assert backend.prompts == [alpaca_prompt(each) for each in instructions]
    assert (backend.params.n, backend.params.temperature) == (3, 1.0)
    first, last = pairs
    assert (first.instruction, first.chosen) == (instructions[0], f"a #### {PROBLEMS[0].answer}")
    assert first.rejected in ("b #### 100000", "c")
    assert (last.instruction, last.chosen, last.rejected) == (
        instructions[3],
        f"#### {PROBLEMS[3].answer}.",
        "#### 100000",
    )
    assert counts == {
        "samples: right": 4,
        "samples: wrong": 4,
        "samples: cut off or empty": 4,
        "problems: never wrong": 1,
        "problems: never right": 1,
    }
