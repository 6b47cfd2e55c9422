"""The console: texts are shown as they are written; a chat is driven line by line, and through a real terminal."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch

from cs336.cli import main
from cs336.generate import chat as chat_module
from cs336.generate.chat import STOP, Conversation, Settings, chat
from cs336.generate.engine import generate
from cs336.model.transformer import ModelConfig, TransformerLM, load_model, save_model
from cs336.tokenizer.bpe import END_OF_TEXT, Tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Artifacts with a random model of bytes, and its tokenizer beside it."""
    folder = tmp_path_factory.mktemp("artifacts")
    torch.manual_seed(1)
    config = ModelConfig(context_length=96, d_model=32, num_layers=2, num_heads=2, vocab_size=257)
    model = TransformerLM(config)
    with torch.no_grad():
        model.lm_head.weight[256] = 0  # hardly ever the end of the text
    (folder / "base_model").mkdir()
    save_model(model, folder / "base_model")
    Tokenizer({i: bytes([i]) for i in range(256)}, [], [END_OF_TEXT]).save(folder / "tokenizer")
    return folder


@pytest.fixture
def model(folder):
    return load_model(folder / "base_model")


@pytest.fixture
def tokenizer(folder):
    return Tokenizer.load(folder / "tokenizer")


def test_generate_shows_prompt_and_text(folder, model, tokenizer, capsys):
    options = ["--tokens", "120", "--temperature", "1", "--top-k", "30", "--top-p", "0.9", "--seed", "5"]
    assert main(["generate", "héllo", "--model", str(folder / "base_model"), *options]) == 0
    printed = capsys.readouterr()
    settings = {"max_new_tokens": 120, "temperature": 1.0, "top_k": 30, "top_p": 0.9, "seed": 5, "overflow": "crop"}
    expected = generate(model, tokenizer, ["héllo"], **settings)[0]
    assert printed.out == "héllo" + expected.text + "\n"
    assert printed.err == "[120 tokens, ended by --tokens]\n"


def test_generate_makes_several_samples_and_ends_at_stop_strings(folder, model, tokenizer, capsys):
    arguments = ["generate", "x", "--model", str(folder / "base_model"), "--num-samples", "5", "--tokens", "60"]
    settings = {"max_new_tokens": 60, "temperature": 0.8, "top_p": 0.95, "overflow": "crop"}
    free = generate(model, tokenizer, ["x"] * 5, **settings)
    stops = [free[0].text[7], free[1].text[9]]
    expected = generate(model, tokenizer, ["x"] * 5, stop=[*stops, "\n"], **settings)
    assert main([*arguments, "--stop", stops[0], "--stop", stops[1], "--stop", r"\n"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "".join(f"--- {number}\nx{each.text}\n" for number, each in enumerate(expected, 1))
    assert "ended by a stop string" in printed.err


def test_a_prompt_longer_than_the_context_is_said(folder, capsys):
    assert main(["generate", "x" * 97, "--model", str(folder / "base_model"), "--tokens", "2"]) == 0
    assert "[the model sees 96 tokens: the prompt's beginning was left out]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "0"], "at least 1"),
        (["--top-p", "0"], "top_p"),
        (["--top-k", "-1"], "top_k"),
        (["--temperature", "-1"], "temperature"),
        (["--seed", "-1"], "seed"),
        (["--stop", ""], "empty"),
    ],
)
def test_settings_out_of_range_are_one_line(folder, options, message, capsys):
    assert main(["generate", "x", "--model", str(folder / "base_model"), *options]) == 1
    printed = capsys.readouterr().err
    assert message in printed and printed.startswith("cs336: ") and len(printed.splitlines()) == 1


def test_a_tokenizer_of_another_model_is_one_line(folder, tmp_path, capsys):
    vocab = {**{i: bytes([i]) for i in range(256)}, 256: b"ab"}
    (tmp_path / "other").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "other" / name).symlink_to(folder / "base_model" / name)
    Tokenizer(vocab, [(b"a", b"b")], [END_OF_TEXT]).save(tmp_path / "other")
    assert main(["generate", "x", "--model", str(tmp_path / "other")]) == 1
    printed = capsys.readouterr().err
    assert "its tokenizer has 258 tokens, the model knows 257" in printed and len(printed.splitlines()) == 1


def test_what_cannot_be_opened_is_one_line(folder, tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(folder / "base_model" / name)
    Tokenizer({i: bytes([i]) for i in range(256)}, []).save(tmp_path)
    assert main(["chat", "--model", str(tmp_path)]) == 1
    assert "<|endoftext|> is not a special token" in capsys.readouterr().err
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert main(["generate", "x", "--model", str(tmp_path)]) == 1
    printed = capsys.readouterr().err
    assert "is a Hugging Face checkpoint" in printed and len(printed.splitlines()) == 1


def talk(model, tokenizer, lines, settings=None):
    """What a chat shows when these lines are typed; an exception among them is raised instead."""
    shown = []
    left = iter(lines)

    def read(prompt):
        shown.append(prompt)
        line = next(left, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    chat(model, tokenizer, settings or Settings(tokens=20), read=read, write=shown.append)
    return "".join(shown)


def test_the_text_of_a_conversation(tokenizer):
    conversation = Conversation([("one?", "1"), ("two?", "2")])
    whole = "User: one?\nAssistant: 1\nUser: two?\nAssistant: 2\nUser: three?\nAssistant:"
    assert conversation.prompt("three?", tokenizer, room=len(whole)) == (whole, 0)
    shorter = "User: two?\nAssistant: 2\nUser: three?\nAssistant:"
    assert conversation.prompt("three?", tokenizer, room=len(whole) - 1) == (shorter, 1)
    assert conversation.prompt("three?", tokenizer, room=1) == ("User: three?\nAssistant:", 2)


def test_answers_continue_the_conversation(model, tokenizer):
    settings = Settings(tokens=12, seed=3)
    shown = talk(model, tokenizer, ["hi", "and?"], settings)
    drawn = {"max_new_tokens": 12, "temperature": 0.8, "top_p": 0.95, "stop": [STOP], "overflow": "crop"}
    first = generate(model, tokenizer, ["User: hi\nAssistant:"], seed=3, **drawn)[0].text
    past = f"User: hi\nAssistant: {first.strip()}\nUser: and?\nAssistant:"
    second = generate(model, tokenizer, [past], seed=4, **drawn)[0].text
    note = " [12 tokens; /tokens allows more]\n"
    assert shown == f"User: Assistant: {first.strip()}{note}User: Assistant: {second.strip()}{note}User: \n"


def test_commands(model, tokenizer):
    settings = Settings(tokens=5)
    shown = talk(
        model,
        tokenizer,
        ["/help", "/temperature 0.3", "/top-k 9", "/top-p 0.5", "/tokens 7", "/seed 11", "/seed", "", "/quit", "never"],
        settings,
    )
    assert "/temperature 0.7" in shown and "Ctrl-C" in shown and shown.count("[seed = 11]") == 2
    assert settings == Settings(temperature=0.3, top_k=9, top_p=0.5, tokens=7, seed=11)
    assert "Assistant" not in shown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/temperature warm", "[/temperature: 'warm' is not a number]"),
        ("/temperature nan", "[/temperature: nan is out of range; give 0 or more]"),
        ("/top-p 0", "[/top-p: 0 is out of range; give above 0 and at most 1]"),
        ("/top-k -1", "[/top-k: -1 is out of range; give 0 or more]"),
        ("/tokens 1.5", "[/tokens: '1.5' is not a whole number]"),
        ("/tokens 0", "[/tokens: 0 is out of range; give 1 or more]"),
        ("/change 1", "[there is no command /change; /help lists them]"),
    ],
)
def test_a_wrong_command_is_one_line_and_changes_nothing(model, tokenizer, line, message):
    settings = Settings(tokens=5)
    assert talk(model, tokenizer, [line], settings) == f"User: {message}\nUser: \n"
    assert settings == Settings(tokens=5)


def test_reset_forgets_so_the_same_answer_comes_again(model, tokenizer):
    shown = talk(model, tokenizer, ["hello", "/reset", "hello"]).split("User: ")
    assert shown[1] == shown[3] and shown[1].startswith("Assistant: ")
    assert talk(model, tokenizer, ["hello", "hello"]).split("User: ")[2] != shown[1]


def test_the_oldest_turns_are_left_out_when_the_context_is_full(model, tokenizer):
    shown = talk(model, tokenizer, ["hello"] * 4, Settings(tokens=20))
    assert "[the model sees 96 tokens; oldest turns left out: 1]" in shown


def test_ctrl_c_stops_the_answer_and_keeps_it(model, tokenizer, monkeypatch):
    prompts = []

    def interrupted(model, tokenizer, prompts_given, **options):
        prompts.append(prompts_given[0])
        yield 0, " half"
        raise KeyboardInterrupt

    monkeypatch.setattr(chat_module, "stream", interrupted)
    shown = talk(model, tokenizer, ["hi", KeyboardInterrupt(), "more"])
    assert shown.startswith("User: Assistant: half [stopped]\nUser: \n[Ctrl-D or /quit leaves]\nUser: ")
    assert prompts[1] == "User: hi\nAssistant: half\nUser: more\nAssistant:"


def _as_from_a_terminal():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job has it ignored, and so have its children


def test_in_a_real_terminal_lines_are_edited_and_ctrl_c_stops_only_the_answer(folder):
    leader, follower = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "cs336", "chat", "--model", str(folder / "base_model"), "--tokens", "100000"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        cwd=ROOT,
        env={**os.environ, "TERM": "dumb"},
        start_new_session=True,
        preexec_fn=_as_from_a_terminal,
    )
    os.close(follower)
    screen = seen = b""

    def wait_for(text, *, press=b""):
        """Read until the text is there; a key is pressed every second until then."""
        nonlocal screen, seen
        deadline = time.monotonic() + 60
        while text not in screen:
            if press:
                os.write(leader, press)
            if not select.select([leader], [], [], 1)[0]:
                assert time.monotonic() < deadline, screen
                continue
            try:
                screen += os.read(leader, 65_536)
            except OSError:
                pytest.fail(f"the program ended: {screen!r}")
        seen, screen = screen[: screen.index(text)], screen[screen.index(text) + len(text) :]

    try:
        wait_for(b"This is a base model")
        wait_for(b"User: ")
        os.write(leader, b"/temperature 0.55\x7f\r")  # Backspace takes one 5 away
        wait_for(b"[temperature = 0.5]")
        wait_for(b"User: ")
        for _ in range(5):  # the answer of a random model may end by itself just before the key is heard
            os.write(leader, b"hello\r")
            wait_for(b"Assistant: ")
            while len(screen) < 20 and b"User: " not in screen:  # it is writing
                screen += os.read(leader, 65_536)
            os.write(leader, b"\x03")
            wait_for(b"User: ")
            if b"[stopped]" in seen:
                break
        else:
            pytest.fail("Ctrl-C never stopped an answer")
        os.write(leader, b"abc")
        wait_for(b"abc")
        # Pressed until heard: a signal that comes just before readline waits for a key is seen with the next.
        wait_for(b"[Ctrl-D or /quit leaves]", press=b"\x03")
        wait_for(b"User: ")
        assert program.poll() is None
        os.write(leader, b"\x04")
        assert program.wait(timeout=20) == 0
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
            program.wait()
        os.close(leader)
