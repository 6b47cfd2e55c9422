"""Prompt templates: the text files of `templates/`, and how they are filled.

Each file is the template byte for byte, white space at its end included. A placeholder is a name in
braces, such as `{question}`; what is put in its place is never looked at again, so questions may hold
braces themselves.

r1_zero        the published DeepSeek-R1-Zero template (arXiv:2501.12948, table 1) as the MATH training
               traces and Dr. GRPO (arXiv:2503.20783) write it: the response begins inside <think>
r1_zero_short  its last two lines alone. The preamble means nothing to a model trained from scratch and
               costs it over a hundred tokens a prompt; the rewards are the same
question_only  the question and nothing else
alpaca         the Alpaca form without input (github.com/tatsu-lab/stanford_alpaca)
zero_shot      the frame around every zero-shot instruction, by the handout's description
mmlu, gsm8k    the instructions of these benchmarks, to be put into zero_shot, by its description too
judge_...      what model judges are asked (`cs336.evals.judges`), likewise
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

_FOLDER = Path(__file__).parent / "templates"
_PLACEHOLDER = re.compile(r"\{([a-z][a-z_0-9]*)\}")


def template_path(name: str) -> Path:
    """The file of a template.

    Raises:
        ValueError: there is no template of that name.
    """
    path = _FOLDER / f"{name}.txt"
    if not path.exists():
        names = sorted(file.stem for file in _FOLDER.glob("*.txt"))
        raise ValueError(f"no template named {name!r}; there are {', '.join(names)}")
    return path


@functools.cache
def read_template(name: str) -> str:
    """A template as it is stored.

    Raises:
        ValueError: there is no template of that name.
    """
    return template_path(name).read_bytes().decode()


def fill_template(name: str, **values: str) -> str:
    """A template with every placeholder replaced.

    Raises:
        ValueError: no such template, a placeholder without a value, or a value without a placeholder.
    """
    return fill(read_template(name), **values)


def fill(template: str, **values: str) -> str:
    """As `fill_template`, of a template given as text."""
    names = set(_PLACEHOLDER.findall(template))
    if names != set(values):
        raise ValueError(f"the template asks for {sorted(names)}, the values are of {sorted(values)}")
    return _PLACEHOLDER.sub(lambda place: values[place[1]], template)


def r1_zero_prompt(question: str) -> str:
    """The prompt of reasoning RL; it ends with `<think>`, so the response begins inside."""
    return fill_template("r1_zero", question=question)


def question_only_prompt(question: str) -> str:
    """The question, unchanged."""
    return fill_template("question_only", question=question)


def alpaca_text(prompt: str, response: str) -> str:
    """A whole example of instruction tuning, which ends directly after the response.

    The stored template ends with a newline after the response, which is left out: the end-of-text
    token follows the response at once.
    """
    return fill(read_template("alpaca").removesuffix("\n"), prompt=prompt, response=response)


def alpaca_prompt(prompt: str) -> str:
    """What a tuned model continues: the Alpaca form up to the response heading and its newline."""
    return fill(read_template("alpaca").removesuffix("\n").removesuffix("{response}"), prompt=prompt)


def wrap_instruction(instruction: str) -> str:
    """The zero-shot prompt around an instruction; it ends where the model starts to write."""
    return fill_template("zero_shot", instruction=instruction)
