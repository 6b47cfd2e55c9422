"""`cs336 ...`: what a person does by hand.

Commands that need the graph come from packages that announce themselves under the entry point
`cs336.commands`; this module knows nothing of Dagster.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import os
import random
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cs336 import evaluation_commands, tokenizer_commands
from cs336.files import UserError, read_json
from cs336.scaling import commands as scaling_commands
from cs336.service import commands as service_commands

if TYPE_CHECKING:
    from cs336.generate.checkpoints import Checkpoint

_LINE_WIDTH = 120  # of what `show` prints

DESCRIPTION = """Train language models from scratch, from raw crawl to MMLU and GSM8K scores.

first steps:
  cs336 demo                       the whole chain at preset `tiny`, on two CPU cores, offline
  cs336 scores                     the score table of every model there is
  cs336 look filtered_text         read documents at any stage
  cs336 why URL                    what became of a page, and which rule dropped it
  cs336 generate "def "            let the model write
  cs336 chat                       talk with it
  cs336 evaluate gsm8k             score it, or any other model
  cs336 serve scaling              losses of small models, for a budget of FLOPs, over HTTP
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a mistake ends with one line and exit code 1."""
    # Read when PyTorch loads: threads that spin while they wait stall each other on shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = argparse.ArgumentParser(
        prog="cs336", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=lambda options: parser.print_help())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _register(commands)
    tokenizer_commands.register(commands)
    evaluation_commands.register(commands)
    scaling_commands.register(commands)
    service_commands.register(commands)
    for entry in importlib.metadata.entry_points(group="cs336.commands"):
        entry.load()(commands)
    options = parser.parse_args(arguments)
    try:
        _require_data_folder()
        return options.run(options) or 0
    except UserError as error:
        print(f"cs336: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ncs336: stopped; finished artifacts are kept, run again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


def _require_data_folder() -> None:
    """A mistyped folder would silently be one without any data."""
    folder = os.environ.get("CS336_DATA")
    if folder and not Path(folder).expanduser().is_dir():
        raise UserError(f"CS336_DATA={folder}: no such folder; name the folder of data sets, or unset it")


def add_preset_option(command: argparse.ArgumentParser) -> None:
    """`--preset NAME`, as every command about artifacts has it."""
    command.add_argument("--preset", default="tiny", help="preset (default: %(default)s; see `cs336 presets`)")


def _register(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("presets", help="list presets, or show every setting of one")
    command.add_argument("name", nargs="?", help="preset to show")
    command.set_defaults(run=_presets)

    command = commands.add_parser("data", help="external data sets and models: what there is, what is here, fetch")
    actions = command.add_subparsers(required=True, metavar="ACTION")
    action = actions.add_parser("list", help="every entry of the catalogue, and where it was found")
    action.set_defaults(run=_data_list)
    action = actions.add_parser("fetch", help="download entries, with resume and checksums")
    action.add_argument("names", nargs="+", help="entries of `cs336 data list`")
    action.set_defaults(run=_data_fetch)

    command = commands.add_parser("pin", help="write a manifest of the Common Crawl files taken, to be replayed")
    command.add_argument("file", type=Path, help="JSON to write; name it in a preset's source: manifest = FILE")
    add_preset_option(command)
    command.set_defaults(run=_pin)

    command = commands.add_parser("show", help="an artifact: its manifest in short, and its files")
    command.add_argument("asset", help="such as tokenizer or token_shards/docs-00000")
    add_preset_option(command)
    command.set_defaults(run=_show)

    command = commands.add_parser("look", help="read random documents at any stage, with their addresses")
    command.add_argument("asset", nargs="?", default="deduplicated_text", help="default: %(default)s")
    command.add_argument("-n", type=int, default=3, help="how many (default: %(default)s)")
    command.add_argument("--seed", type=int, default=None, help="the same documents again")
    command.add_argument("--contains", default="", help="only documents with this text")
    command.add_argument("--characters", type=int, default=1_000, help="of each document (default: %(default)s)")
    add_preset_option(command)
    command.set_defaults(run=_look)

    command = commands.add_parser("generate", help="let a model continue a prompt, shown as it is written")
    command.add_argument("prompt", nargs="?", default="", help="text to continue")
    command.add_argument("--tokens", type=int, default=100, help="at most (default: %(default)s)")
    command.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help=r"end before this text; \n in it is a line's end; may be given several times",
    )
    command.add_argument(
        "--num-samples", type=int, default=1, metavar="N", help="several texts, all at once (default: %(default)s)"
    )
    _add_generation_options(command)
    command.set_defaults(run=_generate)

    command = commands.add_parser("export", help="write a preset's model as a Hugging Face checkpoint")
    command.add_argument("folder", metavar="OUT", type=Path, help="new folder, for transformers or vLLM to open")
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights (default: %(default)s)"
    )
    command.add_argument(
        "--model", type=Path, metavar="FOLDER", help="a model's folder (default: the preset's base_model)"
    )
    add_preset_option(command)
    command.set_defaults(run=_export, device="cpu")

    command = commands.add_parser("chat", help="talk with a model in the terminal; /help there lists its commands")
    command.add_argument("--tokens", type=int, default=200, help="longest answer (default: %(default)s)")
    _add_generation_options(command)
    command.set_defaults(run=_chat)

    command = commands.add_parser("scores", help="the score table of every preset's model, or of one's")
    command.add_argument("--preset", help="preset (default: all; see `cs336 presets`)")
    command.add_argument(
        "--seeds", action="store_true", help="of presets with several seeds (NAME_seed_1): mean and spread over them"
    )
    command.set_defaults(run=_scores)

    command = commands.add_parser("verify", help="compare every artifact's files with its manifest")
    add_preset_option(command)
    command.set_defaults(run=_verify)


def _add_generation_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default: %(default)s)")
    command.add_argument("--top-k", type=int, default=0, help="most probable tokens; 0 is all (default: %(default)s)")
    command.add_argument("--top-p", type=float, default=0.95, help="nucleus; 1 is all (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="another seed, another text (default: %(default)s)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    command.add_argument(
        "--model", type=Path, metavar="FOLDER", help="a model's folder (default: the preset's base_model)"
    )
    add_preset_option(command)


def _presets(options: argparse.Namespace) -> int:
    from cs336.preset_lookup import find_preset, preset_names, presets_file

    if options.name:
        _print_settings(find_preset(options.name), indent="")
        return 0
    mistakes = 0
    for name in preset_names():
        try:
            preset = find_preset(name)
        except UserError as mistake:  # the others are listed all the same
            print(f"cs336: {mistake}", file=sys.stderr)
            mistakes += 1
            continue
        tokens = preset.train.batch_size * preset.train.num_steps * preset.model.context_length
        source = type(preset.source).__name__
        amount = f"{tokens:>16,} training tokens"
        if preset.train.max_seconds:
            amount = f"{preset.train.max_seconds:>16,.0f} s of training"
        print(f"{name:<12} source {source:<12} d_model {preset.model.d_model:<6} {amount}")
    print(f"\nyour own: {presets_file()} (format: the beginning of cs336/preset_lookup.py)")
    return int(mistakes > 0)


def _print_settings(config: object, indent: str) -> None:
    import dataclasses

    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            print(f"{indent}{field.name}: {type(value).__name__}")
            _print_settings(value, indent + "  ")
        else:
            print(f"{indent}{field.name} = {value!r}")


def _data_list(options: argparse.Namespace) -> None:
    from cs336 import catalog

    rows = catalog.status_table()
    columns = list(rows[0])
    widths = {column: max(len(column), *(len(str(row[column])) for row in rows)) for column in columns}
    for row in [dict(zip(columns, columns, strict=True)), *rows]:
        print("  ".join(f"{row[column] or '-'!s:<{widths[column]}}" for column in columns).rstrip())


def _data_fetch(options: argparse.Namespace) -> None:
    from cs336 import catalog
    from cs336.progress import bar

    for name in options.names:
        if name not in catalog.ENTRIES:
            raise UserError(f"the catalogue has no {name!r}; `cs336 data list` shows what it has")
        print(f"{name}: {catalog.fetch(name, progress=bar)}")


def _pin(options: argparse.Namespace) -> None:
    from cs336.crawl.common_crawl import CommonCrawl, pin_shard, write_manifest
    from cs336.crawl.source import Shard
    from cs336.preset_lookup import find_preset
    from cs336.store import Store

    source = find_preset(options.preset).source
    if not isinstance(source, CommonCrawl):
        raise UserError(
            f"preset {options.preset}: its source is {type(source).__name__}; only Common Crawl is pinned so"
        )
    store = Store(options.preset)
    plan = store.path("crawl_plan") / "plan.json"
    if not plan.exists():
        raise UserError(f"{plan}: not there yet; `cs336 run --preset {options.preset} --job plan` makes it")
    planned = read_json(plan)["shards"]
    shards = [Shard(each["name"], tuple(each["items"])) for each in planned]
    write_manifest(options.file, source, [pin_shard(shard, store.path("crawl", shard.name)) for shard in shards])
    print(f"{options.file}: {sum(len(shard.items) for shard in shards)} files with size and SHA-256")


def _show(options: argparse.Namespace) -> None:
    from cs336.preset_lookup import find_preset
    from cs336.store import MANIFEST, Store

    find_preset(options.preset)
    folder = Store(options.preset).path(options.asset)
    if not (folder / MANIFEST).exists():
        shards = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        if shards:
            raise UserError(f"{folder}: has shards; name one: {', '.join(f'{options.asset}/{s}' for s in shards[:8])}")
        raise UserError(_not_there(options.preset, options.asset))
    manifest = read_json(folder / MANIFEST)
    print(folder)
    _print_facts(
        {key: manifest[key] for key in ("fingerprint", "finished", "seconds", "inputs", "machine", "versions")}
        | _measured_elsewhere(manifest)
    )
    for name, facts in manifest["files"].items():
        print(f"  {facts['bytes']:>14,} bytes  {name}  sha256 {facts['sha256'][:12]}")
    _print_facts(manifest["metadata"])


def _measured_elsewhere(manifest: dict[str, Any]) -> dict[str, str]:
    """Of an adopted artifact the machine that made it, and the files that did not come along."""
    adopted = manifest.get("measured_elsewhere")
    if not adopted:
        return {}
    without = f", without {', '.join(adopted['left_behind'])}" if adopted["left_behind"] else ""
    return {"adopted": f"measured elsewhere, on {adopted['hardware']}{without}"}


def _print_facts(facts: dict[str, Any]) -> None:
    """A line each, their values one below the other; pages and tables begin on a line of their own."""
    width = max(map(len, facts), default=0) + 1
    lines = textwrap.TextWrapper(
        _LINE_WIDTH,
        initial_indent="  ",
        subsequent_indent=" " * (width + 3),
        break_long_words=False,
        break_on_hyphens=False,
    )
    for name, value in facts.items():
        text = _readable(value)
        if "\n" in text:
            print(f"  {name}:\n{text}")
        else:
            print(lines.fill(f"{f'{name}:':<{width}} {text}"))


def _readable(value: Any) -> str:
    """A value of a manifest: `a=1, b=2` for what has parts, in parentheses within another."""
    if isinstance(value, dict):
        if value.keys() in ({"markdown"}, {"image"}):
            return str(*value.values())
        return ", ".join(f"{name}={_as_part(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_as_part, value)) or "none"
    return str(value)


def _as_part(value: Any) -> str:
    return f"({_readable(value)})" if isinstance(value, dict | list) and value else _readable(value)


def _not_there(preset: str, asset: str) -> str:
    """What to say of an artifact that is not there: a slip of the pen, or not made yet."""
    from cs336.store import MANIFEST, Store

    store = Store(preset)
    made = sorted(
        path.parent.relative_to(store.folder).as_posix()
        for pattern in ("*", "*/*")
        for path in store.folder.glob(f"{pattern}/{MANIFEST}")
    )
    names = sorted({name.partition("/")[0] for name in made})
    makes = f"`cs336 run --preset {preset}` makes it, or with --job one of the experiments"
    close = difflib.get_close_matches(asset, made, n=3) or difflib.get_close_matches(asset, names, n=3)
    if close:
        return f"{store.path(asset)}: not there; did you mean {' or '.join(close)}? Else {makes}"
    return f"{store.path(asset)}: not there yet; {makes}. There are: {', '.join(names) or 'none so far'}"


def _look(options: argparse.Namespace) -> None:
    from cs336.documents import DOCUMENTS_FILE, read_documents
    from cs336.preset_lookup import find_preset
    from cs336.store import Store

    find_preset(options.preset)
    if options.n < 0:
        raise UserError(f"-n is {options.n}; give 0 or more")
    folder = Store(options.preset).path(options.asset)
    shards = sorted(path.parent for pattern in ("", "*/") for path in folder.glob(f"{pattern}{DOCUMENTS_FILE}"))
    if not shards:
        raise UserError(
            f"{folder}: holds no documents; extracted_text, filtered_text and deduplicated_text have some, once"
            f" `cs336 run --preset {options.preset} --job data` has made them"
        )
    found = [document for shard in shards for document in read_documents(shard) if options.contains in document.text]
    that = f" that contain {options.contains!r}" if options.contains else ""
    print(f"{len(found):,} documents{that} in {folder}")
    for document in random.Random(options.seed).sample(found, min(options.n, len(found))):
        print(f"\n--- {document.url}\n--- {document.warc} at byte {document.offset:,}")
        print(document.text[: options.characters])


def _generate(options: argparse.Namespace) -> int:
    from cs336.generate.engine import generate, stream

    if options.num_samples < 1:
        raise UserError(f"--num-samples is {options.num_samples}; give 1 or more")
    checkpoint = _open_model(options)
    model, codec = checkpoint.model, checkpoint.codec
    settings: dict[str, Any] = {
        "max_new_tokens": options.tokens,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "stop": [text.replace("\\n", "\n") for text in options.stop],
        "seed": options.seed,
        "overflow": "crop",
    }
    prompts = [options.prompt] * options.num_samples
    try:
        if options.num_samples == 1:
            pieces = stream(model, codec, prompts, **settings)
            shown = options.prompt
            try:
                while True:
                    _, piece = next(pieces)
                    print(shown + piece, end="", flush=True)
                    shown = ""
            except StopIteration as end:
                print(shown)
                completions = end.value
        else:
            completions = generate(model, codec, prompts, **settings)
            for number, completion in enumerate(completions, 1):
                print(f"--- {number}\n{options.prompt}{completion.text}")
    except ValueError as error:
        raise UserError(str(error)) from None
    except KeyboardInterrupt:
        print("\n[stopped]", file=sys.stderr)
        return 130
    if completions[0].prompt_truncated:
        print(
            f"[the model sees {model.config.context_length} tokens: the prompt's beginning was left out]",
            file=sys.stderr,
        )
    finishes = {"stop": "a stop string", "end": "the model", "length": "--tokens"}
    for completion in completions:
        print(f"[{completion.num_tokens} tokens, ended by {finishes[completion.finish]}]", file=sys.stderr)
    return 0


def _chat(options: argparse.Namespace) -> None:
    from cs336.generate.chat import Settings, chat

    settings = Settings()
    for name in vars(settings):
        try:
            settings.change(name, str(getattr(options, name)))
        except ValueError as error:
            raise UserError(f"--{name.replace('_', '-')}: {error}") from None
    checkpoint = _open_model(options)
    model, codec, folder = checkpoint.model, checkpoint.codec, checkpoint.folder
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{folder}: {num_parameters:,} parameters, context of {model.config.context_length:,} tokens, on"
        f" {model.lm_head.weight.device}\n"
        "This is a base model: it has learnt to continue text, not to answer. It writes on in the text of this\n"
        "conversation, as the assistant; do not trust what it says.\n"
        "/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.\n"
    )
    chat(model, codec, settings)


def _open_model(options: argparse.Namespace) -> Checkpoint:
    """The model that `--model` or `--preset` names, in fp32, with its tokenizer."""
    import torch

    from cs336.generate.checkpoints import load_checkpoint
    from cs336.hardware import pick_device
    from cs336.preset_lookup import find_preset
    from cs336.store import Store
    from cs336.tokens.codec import end_of_text_id

    device = pick_device(options.device)
    folder, tokenizer = options.model, None
    if folder is None:
        find_preset(options.preset)
        store = Store(options.preset)
        folder, tokenizer = _made(store.path("base_model")), _made(store.path("tokenizer"))
    elif not (folder / "config.json").is_file():
        state = "holds no finished model (config.json)" if folder.is_dir() else "not found"
        raise UserError(f"{folder}: {state}; --model takes the folder of a finished training, such as base_model")
    if "model_type" in read_json(folder / "config.json"):
        raise UserError(f"{folder}: is a Hugging Face checkpoint; --model takes a folder such as base_model")
    checkpoint = load_checkpoint(folder, tokenizer=tokenizer, device=device, dtype=torch.float32)
    try:
        end_of_text_id(checkpoint.tokenizer)  # generation ends there
    except ValueError as error:
        raise UserError(f"{tokenizer or folder}: {error}") from None
    return checkpoint


def _made(folder: Path) -> Path:
    if not folder.exists():
        raise UserError(f"{folder}: not there yet; `cs336 run --preset {folder.parent.name}` makes it")
    return folder


def _export(options: argparse.Namespace) -> None:
    import torch

    from cs336.model.huggingface import save_huggingface
    from cs336.tokenizer.formats import HUGGING_FACE_FILE

    checkpoint, dtype = _open_model(options), getattr(torch, options.dtype)
    try:
        save_huggingface(checkpoint.model, options.folder, tokenizer=checkpoint.tokenizer, dtype=dtype)
    except ValueError as error:
        raise UserError(f"{checkpoint.folder}: {error}") from None
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    print(f"{options.folder}: {parameters:,} parameters in {options.dtype}; in transformers:")
    print(f'  model = AutoModelForCausalLM.from_pretrained("{options.folder}")')
    if (options.folder / HUGGING_FACE_FILE).exists():
        print(f'  tokenizer = AutoTokenizer.from_pretrained("{options.folder}")')
    else:
        print(
            f"  no {HUGGING_FACE_FILE}: two ids have the same bytes, which it cannot tell apart; use cs336's Tokenizer"
        )


def _scores(options: argparse.Namespace) -> None:
    from cs336.evals.report import text_table
    from cs336.evals.seeds import over_seeds, seeds_table, without_seed
    from cs336.leaderboard import collect_scores
    from cs336.preset_lookup import find_preset
    from cs336.store import default_root

    rows = collect_scores(default_root())
    if options.seeds:
        wanted = None if options.preset is None else without_seed(options.preset)
        pooled = [row for row in over_seeds(rows) if row["num_seeds"] > 1 and wanted in (None, row["preset"])]
        if not pooled:
            raise UserError(
                f"{wanted or default_root()}: no scores of several seeds yet;"
                f" `cs336 run --preset {wanted or 'NAME'}_seed_1` makes another's"
            )
        print(seeds_table(pooled))
        return
    rows = [row for row in rows if options.preset in (None, row["preset"])]
    if not rows and options.preset is not None:
        find_preset(options.preset)
        raise UserError(f"{options.preset}: no scores yet; `cs336 run --preset {options.preset}` makes them")
    if not rows:
        raise UserError(f"{default_root()}: no scores yet; `cs336 demo` makes the first")
    print(text_table(rows))


def _verify(options: argparse.Namespace) -> int:
    from cs336.preset_lookup import find_preset
    from cs336.store import MANIFEST, Store, verify

    find_preset(options.preset)
    manifests = sorted(Store(options.preset).folder.glob(f"*/{MANIFEST}"))
    manifests += sorted(Store(options.preset).folder.glob(f"*/*/{MANIFEST}"))
    problems = [problem for path in manifests for problem in verify(path.parent)]
    for problem in problems:
        print(problem)
    print(f"preset {options.preset}: {len(manifests)} artifacts, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
