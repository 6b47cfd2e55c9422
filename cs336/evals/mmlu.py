"""MMLU: four options, one letter; asked in words and by the likeliest letter.

Source: Hendrycks et al. 2021, arXiv:2009.03300. Prompt and parser follow the handout (alignment
supplement).
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from cs336.evals.choices import likeliest, option_logprobs
from cs336.evals.task import (
    ZERO_SHOT,
    ContinuationLogprobs,
    EvalConfig,
    EvalResult,
    Example,
    Frame,
    Generate,
    Graded,
    Task,
    accuracy_metrics,
    each,
    run_task,
)
from cs336.tokens.chat import fill_template

LETTERS = "ABCD"

_SENTENCE = re.compile(r"\bthe\s+correct\s+answer\s+is\b", re.IGNORECASE)

# What may stand between the sentence and its letter: blanks, a colon, quotes, brackets, emphasis.
_OPENING = re.compile(r"""[\s:*_"'`“”‘’(\[{]*""")

# One upper-case letter that is a token of its own. It is not alone when a letter or digit follows,
# also after a hyphen, apostrophe, slash or full stop ("C-14", "D's", "A/B", "B.C."), nor in "C++", "C#".
_ALONE = re.compile(r"([A-D])(?![^\W_]|[+#]|[-–'’/][^\W_]|\.[0-9]|\.[A-Za-z](?![^\W_]))")


def evaluate_mmlu(
    examples: Sequence[Example],
    *,
    generate: Generate,
    choose: ContinuationLogprobs | None,
    config: EvalConfig,
    few_shot: Sequence[Example] = (),
    frame: Frame = ZERO_SHOT,
    name: str = "mmlu",
) -> EvalResult:
    """Accuracy in two ways: the sentence the model writes, and the letter it finds likeliest.

    Small models seldom write the requested sentence, so only the second tells them apart; chance
    is 25%.

    Args:
        examples: records with `subject`, `question`, `options` (4 strings), `answer` (a letter).
        generate: greedy generation.
        choose: log-probabilities of continuations; None leaves the likeliest letter out.
        few_shot: worked examples (MMLU's dev split), used only if `config.mmlu_few_shot` is above 0.
        frame: of the generated sentence; `ALPACA` for models tuned on that template.
        name: the set's name beside the score; "mmlu sample" for the project's own questions.

    Returns:
        What `run_task` returns, and for the likeliest letter the metrics `choice_num_correct`,
        `choice_accuracy`, `choice_accuracy_low`, `choice_accuracy_high`, `choice_seconds`, and
        per row `choice`, `choice_correct` and `choice_logprobs` (nats, A to D).

    Raises:
        ValueError: no usable example, fewer worked examples of a subject than asked for, or a
            log-probability that is NaN.
    """
    task = Task(
        name=name,
        examples=examples,
        fault=mmlu_fault,
        instruction=mmlu_instruction,
        grade=each(grade_mmlu),
        frame=frame,
    )
    result = run_task(
        task,
        generate=generate,
        max_new_tokens=config.max_new_tokens,
        max_examples=config.max_mmlu,
        seed=config.seed,
    )
    if choose is None:
        return result
    prompts = [
        mmlu_choice_prompt(row["example"], few_shot=same_subject(few_shot, row["example"], config.mmlu_few_shot))
        for row in result.rows
    ]
    start = time.perf_counter()
    letters = [[(prompt, f" {letter}") for letter in LETTERS] for prompt in prompts]
    logprobs = option_logprobs(letters, choose=choose, name=name)
    seconds = time.perf_counter() - start
    rows = []
    for row, of_letters in zip(result.rows, logprobs, strict=True):
        choice = LETTERS[likeliest(of_letters)]
        rows.append(
            row
            | {"choice": choice, "choice_correct": choice == row["example"]["answer"], "choice_logprobs": of_letters}
        )
    metrics = {
        **result.metrics,
        **accuracy_metrics([row["choice_correct"] for row in rows], prefix="choice_"),
        "choice_seconds": seconds,
    }
    return EvalResult(name, rows, metrics)


def mmlu_fault(example: Example) -> str | None:
    """Why a record is no MMLU question; None when it is one."""
    if not all(isinstance(example.get(name), str) and example[name].strip() for name in ("subject", "question")):
        return "no subject or question"
    options = example.get("options")
    if not isinstance(options, list | tuple) or len(options) != 4 or not all(isinstance(o, str) for o in options):
        return "not four options"
    if not isinstance(example.get("answer"), str) or example["answer"] not in tuple(LETTERS):
        return "answer is not a letter from A to D"
    return None


def mmlu_instruction(example: Example) -> str:
    """What is asked: one sentence with the letter."""
    return fill_template("mmlu", subject=example["subject"], question=format_question(example))


def mmlu_choice_prompt(example: Example, *, few_shot: Sequence[Example] = ()) -> str:
    """The prompt after which the letters are compared: " A", " B", " C" or " D" comes next.

    Without the wrapper, to fit into small context windows.
    """
    heading = f"The following are multiple-choice questions, with answers, about {example['subject']}.\n\n"
    worked = [f"{format_question(shot)} The correct answer is {shot['answer']}.\n\n" for shot in few_shot]
    return heading + "".join(worked) + format_question(example) + " The correct answer is"


def format_question(example: Example) -> str:
    """Question, lettered options, and the word after which the answer stands."""
    options = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, example["options"], strict=True))
    return f"Question: {example['question']}\n{options}Answer:"


def same_subject(few_shot: Sequence[Example], example: Example, count: int) -> list[Example]:
    """The first `count` worked examples of the example's subject.

    Raises:
        ValueError: there are fewer.
    """
    found = [shot for shot in few_shot if shot["subject"] == example["subject"]][:count]
    if len(found) < count:
        raise ValueError(
            f"mmlu_few_shot is {count}, but there are {len(found)} worked examples about"
            f" {example['subject']!r}; lower it or pass MMLU's dev split as few_shot"
        )
    return found


def grade_mmlu(example: Example, output: str) -> Graded:
    """Mark one output."""
    prediction = parse_mmlu_response(mmlu_example=example, model_output=output)
    return Graded(prediction, correct=prediction == example["answer"])


def parse_mmlu_response(mmlu_example: Example, model_output: str) -> str | None:
    """The letter that fills the sentence "The correct answer is _"; None when something else does.

    Only the first filled-in sentence counts, and only a letter that stands there as an upper-case
    token of its own: options' texts are not searched for, nor letters elsewhere ("A" is also an
    article). What follows the letter does not matter.

    Args:
        mmlu_example: the question: subject, question, options, answer.
        model_output: what the model wrote.
    """
    letters = LETTERS[: len(mmlu_example["options"])]
    for sentence in _SENTENCE.finditer(model_output):
        opening = _OPENING.match(model_output, sentence.end())
        slot = opening.end() if opening else sentence.end()
        letter = _ALONE.match(model_output, slot)
        if letter:
            return letter.group() if letter.group() in letters else None
        # A blank left open is the request repeated: the reply may still follow.
        if "_" not in model_output[sentence.end() : slot]:
            return None
    return None
