"""A conversation with a model in the terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from cs336.generate.engine import Completion, TextCodec, stream
from cs336.model.transformer import TransformerLM

STOP = "\nUser:"  # where a model that only continues text goes on as the user

_HELP = """\
/help             this list
/reset            forget the conversation
/temperature 0.7  how freely tokens are drawn; 0 takes the most probable one
/top-k 40         only so many most probable tokens may be drawn; 0 allows all
/top-p 0.95       only the most probable tokens of this mass may be drawn; 1 allows all
/tokens 200       the longest answer
/seed 0           the same seed gives the same answers to the same conversation
/quit             leave (or Ctrl-D); Ctrl-C stops an answer
A setting without a value is shown."""


@dataclass
class Settings:
    """What the commands of a chat change; see `cs336.generate.sampling.Sampling`."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    tokens: int = 200
    seed: int = 0

    def change(self, name: str, text: str) -> None:
        """Set one, read from text.

        Raises:
            ValueError: not a number, or one outside the setting's range.
        """
        kind = {"temperature": float, "top_p": float}.get(name, int)
        try:
            value = kind(text)
        except ValueError:
            raise ValueError(f"{text!r} is not {'a number' if kind is float else 'a whole number'}") from None
        ranges: dict[str, tuple[bool, str]] = {
            "temperature": (0 <= value < float("inf"), "0 or more"),
            "top_k": (value >= 0, "0 or more"),
            "top_p": (0 < value <= 1, "above 0 and at most 1"),
            "tokens": (value >= 1, "1 or more"),
            "seed": (value >= 0, "0 or more"),
        }
        fits, wanted = ranges[name]
        if not fits:
            raise ValueError(f"{text} is out of range; give {wanted}")
        setattr(self, name, value)


@dataclass
class Conversation:
    """Who said what, and the text that a base model continues.

    Attributes:
        turns: (message of the user, answer) pairs, the oldest first.
    """

    turns: list[tuple[str, str]] = field(default_factory=list)

    def prompt(self, message: str, tokenizer: TextCodec, *, room: int) -> tuple[str, int]:
        """The conversation up to the place where the answer to `message` begins.

        The oldest turns are left out until the rest has at most `room` tokens; the message always stays.

        Returns:
            The text, and how many turns were left out.
        """
        question = f"User: {message}\nAssistant:"
        for num_left_out in range(len(self.turns) + 1):
            past = "".join(f"User: {asked}\nAssistant: {said}\n" for asked, said in self.turns[num_left_out:])
            if len(tokenizer.encode(past + question)) <= room:
                break
        return past + question, num_left_out


def chat(
    model: TransformerLM,
    tokenizer: TextCodec,
    settings: Settings,
    *,
    read: Callable[[str], str] = input,
    write: Callable[[str], None] = lambda text: print(text, end="", flush=True),
) -> None:
    """Talk until the user leaves.

    Args:
        settings: changed by the user's commands.
        read: shows its argument and returns a line; EOFError leaves, KeyboardInterrupt drops the line.
        write: shows text.
    """
    with contextlib.suppress(ImportError):  # gives `input` line editing and a history; not on Windows
        import readline  # noqa: F401
    conversation = Conversation()
    num_left_out = 0
    while True:
        try:
            line = read("User: ").strip()
        except KeyboardInterrupt:
            write("\n[Ctrl-D or /quit leaves]\n")
            continue
        except EOFError:
            write("\n")
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/reset":
            conversation, num_left_out = Conversation(), 0
            write("[the conversation is forgotten]\n")
        elif line.startswith("/"):
            write(_command(line, settings) + "\n")
        elif line:
            context = model.config.context_length
            # An answer may take the context's second half at most from what the model sees of the past.
            room = max(context - settings.tokens, context // 2)
            prompt, now_left_out = conversation.prompt(line, tokenizer, room=room)
            if now_left_out > num_left_out:
                write(f"[the model sees {context} tokens; oldest turns left out: {now_left_out}]\n")
            num_left_out = now_left_out
            answer = _answer(model, tokenizer, prompt, settings, turn=len(conversation.turns), write=write)
            conversation.turns.append((line, answer))


def _command(line: str, settings: Settings) -> str:
    """Carry out a command; returns what to tell the user."""
    name, _, value = line[1:].partition(" ")
    if name == "help":
        return _HELP
    key = name.replace("-", "_")
    if key not in vars(settings):
        return f"[there is no command /{name}; /help lists them]"
    if value.strip():
        try:
            settings.change(key, value.strip())
        except ValueError as error:
            return f"[/{name}: {error}]"
    return f"[{name} = {getattr(settings, key)}]"


def _answer(
    model: TransformerLM,
    tokenizer: TextCodec,
    prompt: str,
    settings: Settings,
    *,
    turn: int,
    write: Callable[[str], None],
) -> str:
    """Show the model's answer as it comes; Ctrl-C ends it where it is."""
    write("Assistant: ")
    answer = shown = ""
    pieces = stream(
        model,
        tokenizer,
        [prompt],
        max_new_tokens=settings.tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        stop=[STOP],
        seed=settings.seed + turn,
        overflow="crop",
    )
    note = ""
    try:
        while True:
            _, piece = next(pieces)
            answer += piece
            # White space around the answer belongs to the template, not to the screen.
            write(answer.strip()[len(shown) :])
            shown = answer.strip()
    except StopIteration as end:
        completion: Completion = end.value[0]
        if completion.prompt_truncated:
            note = " [the message is longer than the context; its beginning was not seen]"
        if completion.finish == "length":
            note += f" [{settings.tokens} tokens; /tokens allows more]"
    except KeyboardInterrupt:
        note = " [stopped]"
    write(f"{note}\n" if shown else f"[nothing]{note}\n")
    return shown
