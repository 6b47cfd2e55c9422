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

    Attributes:
        stopped: a stop string was found; what follows is ignored.

    Raises:
        ValueError: an empty stop string.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()):
        if "" in stop:
            raise ValueError("a stop string is empty, which would end every text at once; leave it out")
        self.stopped = False
        self._decode = decode
        self._stop = tuple(stop)
        self._pending: list[int] = []  # tokens since the last end of a whole character
        self._num_decoded = 0  # characters of the pending tokens that are certain and passed on
        self._held = ""  # certain text that may begin a stop string

    def push(self, token: int) -> str:
        """The text that is certain now and was not before."""
        self._pending.append(token)
        text = self._decode(self._pending)
        # Half a character at the end is one U+FFFD; those before it are certain.
        certain = len(text) - text.endswith(_INCOMPLETE)
        new = text[self._num_decoded : certain]
        self._num_decoded = certain
        if certain == len(text):
            self._pending, self._num_decoded = [], 0
        return self._pass_on(new)

    def finish(self) -> str:
        """The rest, when no token follows: half characters as U+FFFD, and a stop string's beginning."""
        rest = self._decode(self._pending)[self._num_decoded :]
        self._pending, self._num_decoded = [], 0
        piece = self._pass_on(rest) + self._held
        self._held = ""
        return piece

    def _pass_on(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [(place + len(string), place) for string in self._stop if (place := text.find(string)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        num_held = max((_overlap(text, string) for string in self._stop), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of the text that is a beginning of the string, and not all of it."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if string.startswith(text[-length:]):
            return length
    return 0
