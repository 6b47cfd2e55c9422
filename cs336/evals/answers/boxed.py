"""The answer that a solution puts into `\\boxed{...}`."""

from __future__ import annotations

_BOX = "\\boxed"


def last_boxed(text: str) -> str | None:
    """What stands between the braces of the last `\\boxed{...}`.

    Returns:
        The content as written, its braces matched. None when the text has no box, or when the last one has no
        brace right behind it or never closes: then no earlier box counts.
    """
    _, box, after = text.rpartition(_BOX)
    if not box or not after.startswith("{"):
        return None
    depth = 0
    for position, character in enumerate(after):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return after[1:position]
    return None
