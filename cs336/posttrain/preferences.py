"""Pairs of responses of which people preferred one: Anthropic's HH, and a split of any pairs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cs336.files import UserError, read_jsonl
from cs336.tokens.packing import shuffled

_TURN = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True)
class Preference:
    """An instruction and two responses.

    Attributes:
        chosen: the better response.
        source: name of the file it comes from.
    """

    instruction: str
    chosen: str
    rejected: str
    source: str


def read_hh(paths: Sequence[Path]) -> tuple[list[Preference], dict[str, int]]:
    """The single-turn pairs of Anthropic's HH files, in their order.

    Args:
        paths: JSON Lines, gzipped or not, of the dialogues `chosen` and `rejected`. Of files of one name in
            several folders, as the hub has them, the folder belongs to the source's name.

    Returns:
        One list for all files; and how many rows were dropped for which reason.

    Raises:
        UserError: a file is missing, or is not one of HH's.
    """
    kept: list[Preference] = []
    dropped: Counter[str] = Counter()
    plain = len({path.name for path in paths}) == len(paths)
    for path in paths:
        source = path.name if plain else f"{path.parent.name}/{path.name}"
        for number, row in enumerate(read_jsonl(path), 1):
            match row:
                case {"chosen": str(chosen), "rejected": str(rejected)}:
                    pair = _single_turn(chosen, rejected)
                case _:
                    raise UserError(f"{path}: record {number} has no dialogues `chosen` and `rejected`")
            if isinstance(pair, str):
                dropped[pair] += 1
            else:
                kept.append(Preference(*pair, source=source))
    return kept, dict(dropped)


def split_preferences(
    preferences: Sequence[Preference], num_valid: int, *, seed: int
) -> tuple[list[Preference], list[Preference]]:
    """Training and validation pairs, in their order.

    Instructions are drawn until `num_valid` pairs or a few more belong to them, so that none is on both sides.

    Raises:
        ValueError: that would leave nothing to train on.
    """
    instructions = list(dict.fromkeys(each.instruction for each in preferences))
    sizes = Counter(each.instruction for each in preferences)
    held_out: set[str] = set()
    num_held_out = 0
    for place in shuffled(len(instructions), seed=seed, epoch=0):
        if num_held_out >= num_valid:
            break
        held_out.add(instructions[place])
        num_held_out += sizes[instructions[place]]
    if num_held_out == len(preferences):
        raise ValueError(f"{num_valid} validation pairs of {len(preferences)} leave none to train on; hold out fewer")
    train = [each for each in preferences if each.instruction not in held_out]
    return train, [each for each in preferences if each.instruction in held_out]


def _single_turn(chosen: str, rejected: str) -> tuple[str, str, str] | str:
    """Instruction and both replies, or why there are none."""
    sides = [_TURN.split(dialogue) for dialogue in (chosen, rejected)]  # ["", "Human", text, "Assistant", text, ...]
    if any(side[1::2].count("Human") > 1 for side in sides):
        return "more than one human message"
    if any(side[0].strip() or side[1::2] != ["Human", "Assistant"] for side in sides):
        return "not a human message and a reply"
    (question, reply), (other_question, other_reply) = [[text.strip() for text in side[2::2]] for side in sides]
    if question != other_question:
        return "human messages differ"
    if not question:
        return "empty human message"
    if not reply or not other_reply:
        return "empty reply"
    if reply == other_reply:
        return "replies alike"
    return question, reply, other_reply
