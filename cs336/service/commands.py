"""`cs336 serve scaling`: the scaling service; `cs336 keys ...`: who may use it."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from cs336.command_line import add_action
from cs336.files import UserError
from cs336.scaling.runs import MEASURED_RUNS
from cs336.store import default_root

if TYPE_CHECKING:
    from cs336.scaling.surrogate import Surrogate
    from cs336.service.contest import Contest
    from cs336.service.database import Database

# How workers are started, by name: module and name of a class. The graph adds its own; the library knows no Dagster.
POOLS = {"processes": "cs336.service.pool:LocalPool"}
DATABASE_VARIABLE = "CS336_SERVICE_DATABASE"  # a URL has a password in it, and a command line is everybody's to read

_SERVE = """Serve a scaling study: the training API of CS336's scaling assignment.

  cs336 keys add ada                  makes a key, shown once
  cs336 serve scaling                 then, as long as it runs: http://127.0.0.1:8336/docs
  cs336 serve scaling --text FOLDER   trains the contest's jobs, too: http://127.0.0.1:8336/dashboard

Losses are those of the measured runs; a surrogate, fitted to them when the server starts, answers for all other
configurations. Keys, budgets and answers are kept in the database."""

_KEYS = """Keys of the scaling service: each has a budget of its own.

  cs336 keys add ada                  shown once; what is kept is a hash
  cs336 keys list                     who has one, since when, what is used
  cs336 keys revoke ada               it is refused from now on

A running server knows of a change at once."""


def register(commands: argparse._SubParsersAction) -> None:
    """Add the commands to `cs336`'s parser."""
    command = commands.add_parser("serve", help="serve a scaling study over HTTP")
    actions = command.add_subparsers(required=True, metavar="ACTION")
    action = add_action(actions, "scaling", _SERVE)
    action.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for every network (default: %(default)s)")
    action.add_argument("--port", type=int, default=8336, help="default: %(default)s")
    _add_database_option(action)
    action.add_argument(
        "--runs",
        type=Path,
        metavar="FILE",
        help="measured runs, JSON Lines, or the folder of an asset scaling_surrogate (default: those of cs336)",
    )
    action.add_argument("--log", type=Path, metavar="FILE", help="one JSON line a request (default: standard error)")
    action.add_argument(
        "--requests-per-second", type=float, default=None, metavar="N", help="of one key, in the long run (default 200)"
    )
    group = action.add_argument_group("jobs of the contest")
    group.add_argument(
        "--text",
        type=Path,
        metavar="FOLDER",
        help="token arrays to train on, such as an asset token_shards; else jobs wait",
    )
    group.add_argument("--workers", type=int, default=1, metavar="N", help="jobs at once (default: %(default)s)")
    group.add_argument(
        "--devices",
        default="auto",
        metavar="LIST",
        help="that they are spread over, such as cuda:0,cuda:1 (default: auto)",
    )
    group.add_argument(
        "--pool",
        default="processes",
        metavar="NAME",
        help="what a job is: one of the `processes` of this server, or one of `dagster`'s runs (default: %(default)s)",
    )
    action.set_defaults(run=_serve_scaling)

    command = add_action(commands, "keys", _KEYS)
    actions = command.add_subparsers(required=True, metavar="ACTION")
    for name, help_text, run in (
        ("add", "make a key", _add_key),
        ("list", "show all keys", _list_keys),
        ("revoke", "refuse a key from now on", _revoke_key),
    ):
        action = actions.add_parser(name, help=help_text)
        if name != "list":
            action.add_argument("name", metavar="NAME", help="whose key it is")
        _add_database_option(action)
        action.set_defaults(run=run)


def _add_database_option(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--database",
        metavar="URL",
        help=f"sqlite:///FILE or postgresql://USER@HOST/NAME (default: ${DATABASE_VARIABLE}, else"
        " scaling_service/service.db in the artifacts)",
    )


def database_url(options: argparse.Namespace) -> str:
    """What `--database` says, or the environment, or the file in the artifacts."""
    default = f"sqlite:///{default_root() / 'scaling_service' / 'service.db'}"
    return options.database or os.environ.get(DATABASE_VARIABLE) or default


def open_surrogate(file: Path | None) -> Surrogate:
    """The surrogate of a file of runs, or of the folder that has it; None is the one of the package, if it has one.

    Raises:
        UserError: the file named is missing or holds something else; an empty one leaves the published law.
    """
    from cs336.scaling.runs import measured_runs, read_runs
    from cs336.scaling.surrogate import fit_surrogate

    if file is None:
        return fit_surrogate(measured_runs())
    if file.is_dir():
        file = file / MEASURED_RUNS.name
    runs = read_runs(file)
    if not runs and file.stat().st_size:
        raise UserError(f"{file}: holds no whole row; name another file, or an empty one for the published law")
    return fit_surrogate(runs)


def contest_of(options: argparse.Namespace) -> Contest:
    """The contest that a command line asks for.

    Raises:
        UserError: there is no worker, or no such pool.
    """
    from cs336.service.contest import Contest
    from cs336.service.pool import LocalPool

    if options.workers < 1:
        raise UserError(f"--workers is {options.workers}; give 1 or more, or leave out --text and let jobs wait")
    if options.pool not in POOLS:
        raise UserError(f"--pool is {options.pool}; there are {', '.join(POOLS)}")
    module, _, name = POOLS[options.pool].partition(":")
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host
    return Contest(
        address=f"http://{f'[{host}]' if ':' in host else host}:{options.port}",
        folder=default_root() / "scaling_service" / "runs",
        data=options.text,
        num_workers=options.workers,
        devices=tuple(options.devices.split(",")),
        pool=getattr(importlib.import_module(module), name) if options.text else LocalPool,
    )


def _serve_scaling(options: argparse.Namespace) -> int:
    import uvicorn

    from cs336.service import api_2025
    from cs336.service.app import create_app
    from cs336.service.contest import contest_part
    from cs336.service.state import Settings

    if options.requests_per_second is not None and not options.requests_per_second > 0:
        raise UserError(f"--requests-per-second is {options.requests_per_second}; give a number above 0")
    limits = {}
    if options.requests_per_second is not None:
        limits = {
            "requests_per_second": options.requests_per_second,
            "burst": max(1.0, 2 * options.requests_per_second),
        }
    contest, surrogate = contest_of(options), open_surrogate(options.runs)
    settings = Settings(database_url=database_url(options), log_file=options.log, **limits)
    listening = _listen(options.host, options.port)  # before anything runs: a second server must not touch the first's
    app = create_app(settings, [api_2025.part(surrogate), contest_part(contest)])
    known = surrogate.summary()
    print(
        f"http://{options.host}:{options.port}/docs: {known['measured_runs']} measured runs, and for the rest"
        f" {known['model']}",
        flush=True,
    )
    trains = f"jobs train on {options.text}, {options.workers} at once" if options.text else "jobs wait: no --text"
    print(f"http://{options.host}:{options.port}/dashboard: {trains}", flush=True)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # ours has more, and no keys in it
        server_header=False,
        timeout_keep_alive=30,
    )
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
    return 0 if server.started else 1


def _listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections.

    Raises:
        UserError: the port is taken or none, or the host is not this machine.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise UserError(f"{host}:{port}: cannot listen there ({reason}); name another --port or --host") from None


def _add_key(options: argparse.Namespace) -> None:
    from cs336.service.keys import add_key

    print(add_key(_open(options), options.name))


def _list_keys(options: argparse.Namespace) -> None:
    from cs336.service.keys import list_keys

    found = list_keys(_open(options))
    if not found:
        print("no keys yet; `cs336 keys add NAME` makes one")
        return
    width = max(len(key.name) for key in found)
    for key in found:
        until = f", revoked {_day(key.revoked_at)}" if key.revoked_at is not None else ""
        print(f"{key.name:<{width}}  since {_day(key.created_at)}  {key.flops_used:.4g} FLOPs used{until}")


def _revoke_key(options: argparse.Namespace) -> None:
    from cs336.service.keys import revoke_key

    revoke_key(_open(options), options.name)


def _open(options: argparse.Namespace) -> Database:
    from cs336.service.database import open_database

    return open_database(database_url(options))


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d")
