"""The command line: `memory-service serve`, `migrate`, `check`, `keys` and the other commands."""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from psycopg import pq

from memory_service import (
    __version__,
    check_command,
    config,
    embeddings_command,
    export_command,
    import_command,
    index_command,
    keys_command,
    logs,
    reembed_command,
    serve_command,
    users_command,
)
from memory_service.failures import complain, end_process, exit_status_of

DESCRIPTION = "A vector memory service: gRPC in front of PostgreSQL and pgvector, with embeddings built in."

EPILOG = """\
Every setting is an environment variable, MEMORY_LISTEN for --listen and so on; a flag wins over its variable.
The README lists them all. The most used are

  MEMORY_DATABASE_URL   PostgreSQL to use, as a URL; unset: an embedded one in MEMORY_DATA_DIR
  MEMORY_EMBEDDER       local (default), openai (needs OPENAI_API_KEY) or none (callers send embeddings)

Examples:
  memory-service serve
      on 127.0.0.1:50051, with an embedded PostgreSQL and a local embedding model
  MEMORY_DATABASE_URL=postgresql://memory@db.example/memory memory-service migrate
      brings the schema of that database up to date; `serve` with the same variable then uses it
  memory-service keys create --name "chat service" --role writer --all-users
  memory-service serve --listen 0.0.0.0:50051 --auth keys --tls-certificate server.pem --tls-key server.key
      for everybody who has a key; docs/security.md has more
  memory-service serve --listen 0.0.0.0:50051 --insecure --workers 4
      for a trusted network: four processes on one port, without encryption or authentication
  memory-service check
      tries the configuration, the database and the embedding model
  memory-service export --user ada --output ada.jsonl --with-embeddings
  MEMORY_API_KEY=msk_... memory-service import ada.jsonl --user ada --address memory.example:50051 --tls
      moves a user's memories to another service

Exit status: 0 done; 1 failed; 2 wrong usage or configuration; 3 stopped as asked, but calls had to be cut off.
"""

# Commands on the database that have actions; each has take_request, which reads what its add_actions added, and run.
WITH_ACTIONS: dict[str, Any] = {
    "index": index_command,
    "embeddings": embeddings_command,
    "keys": keys_command,
    "reembed": reembed_command,
    "users": users_command,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process with its exit status."""
    options = vars(_parser().parse_args(arguments))
    if (run := options.pop("run", None)) is not None:  # a command that is a client, and has no settings
        end_process(exit_status_of(lambda: run(options)))
    if (command := WITH_ACTIONS.get(options["command"])) is not None:
        options["request"] = command.take_request(options)
    end_process(exit_status_of(lambda: _run(**options)))


def _run(
    *,
    command: str,
    sql: bool = False,
    status: bool = False,
    request: Any = None,
    **overrides: Any,
) -> int:
    if command == "version":
        _print_versions()
        return 0
    for warning in config.unknown_variables(os.environ):
        complain(f"warning: {warning}")
    settings = config.load(**overrides)
    logs.configure(level=settings.log_level, log_format=settings.log_format)
    if command == "serve":
        return serve_command.run(settings)
    if command == "check":
        return check_command.run(settings, print)
    if command in WITH_ACTIONS:
        exit_status: int = WITH_ACTIONS[command].run(settings, request, print)
        return exit_status
    return _migrate(settings, sql=sql, status=status)


def _migrate(settings: config.Settings, *, sql: bool, status: bool) -> int:
    from memory_service import migrate_command  # noqa: PLC0415 - see db/revisions.py

    if sql:
        return migrate_command.script(settings, print)
    return migrate_command.status(settings, print) if status else migrate_command.run(settings, print)


def _print_versions() -> None:
    print(f"memory-service {__version__}")
    print(f"Python {platform.python_version()}")
    for package in ("grpcio", "protobuf", "psycopg"):
        print(f"{package} {version(package)}")
    print(f"libpq {pq.version_pretty(pq.version())}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="memory-service",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="run the service", description="Runs the service until SIGTERM."))
    migrate = commands.add_parser(
        "migrate", help="bring the database schema up to date", description="Applies the pending schema migrations."
    )
    what = migrate.add_mutually_exclusive_group()
    what.add_argument("--status", action="store_true", help="change nothing; exit with 1 when migrations are pending")
    what.add_argument("--sql", action="store_true", help="print all migrations as SQL, without connecting")
    check = commands.add_parser(
        "check",
        help="try everything the service needs",
        description="Tries configuration, database, schema and embedding model; exits with 1 when something fails.",
    )
    users = commands.add_parser("users", help="list users and what they have stored, set quotas, and erase users")
    for action in users_command.add_actions(users):
        _add_common(action)
    keys = commands.add_parser("keys", help="make, list, revoke and rotate API keys")
    for action in keys_command.add_actions(keys):
        _add_common(action)
    index = commands.add_parser(
        "index",
        help="list, create, drop or rebuild ANN indexes",
        description="Works on the approximate (ANN) indexes that large users have; the service maintains them itself.",
    )
    for action in index_command.add_actions(index):
        _add_common(action)
    embeddings = commands.add_parser("embeddings", help="show what waits for its embedding, and retry what failed")
    for action in embeddings_command.add_actions(embeddings):
        _add_common(action)
    reembed = commands.add_parser("reembed", help="move all memories to another embedding model, without downtime")
    reembed_command.add_arguments(reembed)
    import_command.add_arguments(
        commands.add_parser(
            "import",
            help="store the memories of a file",
            description="Sends the memories of a file to a running service. Broken off, it goes on where it was.",
        )
    )
    export_command.add_arguments(
        commands.add_parser(
            "export",
            help="write a user's memories to a file",
            description="Writes a user's memories, newest first, to a file that `import` reads.",
        )
    )
    commands.add_parser("version", help="print versions")
    for command in (migrate, check, reembed):
        _add_common(command)
    return parser


def _add_serve(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("--listen", metavar="HOST:PORT", help="address of the gRPC service (127.0.0.1:50051)")
    serve.add_argument("--ops-listen", metavar="HOST:PORT", help="address for health checks only, or off (…:50052)")
    serve.add_argument("--workers", type=int, metavar="N", help="server processes sharing the port (1)")
    serve.add_argument("--auth", metavar="WHAT", help="what calls have to bring: keys, jwt or keys,jwt (off: nothing)")
    serve.add_argument("--tls-certificate", metavar="FILE", help="the server's certificate, in PEM")
    serve.add_argument("--tls-key", metavar="FILE", help="its private key, in PEM")
    serve.add_argument("--tls-client-ca", metavar="FILE", help="let in only clients with certificates of these")
    serve.add_argument(
        "--insecure",
        action="store_true",
        default=None,
        help="allow a --listen address that other machines can reach without TLS or without authentication",
    )
    _add_common(serve)


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data-dir", metavar="DIR", help="where the embedded PostgreSQL keeps its data")
    command.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    command.add_argument("--log-format", choices=("auto", "json", "console"))


if __name__ == "__main__":
    main(sys.argv[1:])
