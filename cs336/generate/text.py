"""From tokens to text while they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what decoders write for half a character


class TextStream:
    """Text of tokens that arrive one by one, up to a stop string.

    All pieces joined are the decoded text of all tokens, or of those before the stop string. A piece
    never ends within a UTF-8 character, and never holds what may turn out to begin a stop string.
    Of several stop strings the one that is complete first counts, however the text is cut into
    tokens; of those complete at once, the longest.

    Args:
        decode: ids to text; bytes that are not UTF-8, half a character among them, become U+FFFD.
        stop: strings that end the text.
        keep_stop: the text ends after the stop string, not before it.

    Attributes:
        stopped: a stop string was found; what follows is ignored.

    Raises:
        ValueError: an empty stop string.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = (), *, keep_stop: bool = False):
        if "" in stop:
            raise ValueError("a stop string is empty, which would end every text at once; leave it out")
        self.stopped = False
        self._decode = decode
        self._stop = tuple(stop)
        self._keep_stop = keep_stop
        self._pending: list[int] = []  # tokens since the last end of a whole character
        self._num_decoded = 0  # characters of the pending tokens that are certain and passed on
        self._held = ""  # certain text that may begin a stop string

    def push(self, token: int, *, may_stop: bool = True) -> str:
        """The text that is certain now and was not before.

        Args:
            may_stop: whether a stop string that this token completes counts; one that is passed over never does.
        """
        self._pending.append(token)
        text = self._decode(self._pending)
        # Half a character at the end is one U+FFFD; those before it are certain.
        certain = len(text) - text.endswith(_INCOMPLETE)
        new = text[self._num_decoded : certain]
        self._num_decoded = certain
        if certain == len(text):
            self._pending, self._num_decoded = [], 0
        return self._pass_on(new, may_stop)

    def read(self, tokens: Sequence[int], *, may_stop: bool = True) -> tuple[str, int]:
        """`push` of several tokens, none after the one that completes a stop string; also says how many were taken.

        Decodes once where no stop string comes, which is nearly always.
        """
        if not tokens:
            return "", 0
        if may_stop and self._stop:
            text = self._held + self._decode([*self._pending, *tokens])[self._num_decoded :]
            if self._stops_in(text):
                pieces = []
                for token in tokens:
                    pieces.append(self.push(token))
                    if self.stopped:
                        break
                return "".join(pieces), len(pieces)
        self._pending.extend(tokens[:-1])
        return self.push(tokens[-1], may_stop=may_stop), len(tokens)

    def finish(self, *, may_stop: bool = True) -> str:
        """The rest, when no token follows: half characters as U+FFFD, and a stop string's beginning."""
        rest = self._decode(self._pending)[self._num_decoded :]
        self._pending, self._num_decoded = [], 0
        piece = self._pass_on(rest, may_stop) + self._held
        self._held = ""
        return piece

    def _pass_on(self, new: str, may_stop: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = self._stops_in(text) if may_stop else []
        if found:
            self.stopped = True
            self._held = ""
            end, start = min(found)
            return text[: end if self._keep_stop else start]
        num_held = max((_overlap(text, string) for string in self._stop), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def _stops_in(self, text: str) -> list[tuple[int, int]]:
        """End and start of each stop string in held and new text that the new completes."""
        firsts = [(string, text.find(string, max(0, len(self._held) + 1 - len(string)))) for string in self._stop]
        return [(start + len(string), start) for string, start in firsts if start >= 0]


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of the text that is a beginning of the string, and not all of it."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if string.startswith(text[-length:]):
            return length
    return 0
