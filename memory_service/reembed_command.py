"""`memory-service reembed`: moves the database to another embedding model while it is in use, and back."""

import argparse
import sys
from dataclasses import fields
from typing import Any, get_args

from db import revisions, schema
from db.facts import facts_of
from memory_service import argument_types
from memory_service.command_audit import written_down
from memory_service.config import Settings
from memory_service.provisioning import embedding_space, provide_database
from memory_service.reembedding.actions import Actions, Say, open_database
from memory_service.reembedding.patient_embedding import Stopped
from memory_service.reembedding.request import DEFAULT_BATCH, DEFAULT_MAX_PENDING, Request
from memory_service.settings.embedding import MAX_DIMENSIONS
from memory_service.settings.embedding import Embedder as EmbedderKind
from memory_service.signals import stop_on_signal

DESCRIPTION = """\
Moves all memories to another embedding model, or number of dimensions, while the service goes on reading and writing:
embeds every memory with the new model beside the old embedding, builds the indexes, embeds what was written meanwhile,
and switches, for which memories are locked for a fraction of a second. Searches use the old model until then, and never
both. Running servers follow the switch.

It may be interrupted or killed anywhere: run again it goes on. What is to be set afterwards it says at the end. Until
--clean-up the old embeddings are kept, and --switch-back leads back to them.
"""

EPILOG = """\
Run it with the settings that the servers have: MEMORY_DATABASE_URL or MEMORY_DIRECT_DATABASE_URL, which must not lead
through a transaction pooler, OPENAI_API_KEY or MEMORY_OPENAI_BASE_URL for the new model, and the MEMORY_EMBEDDER,
MEMORY_EMBEDDING_MODEL and MEMORY_EMBEDDING_DIMENSIONS of the old one.

Examples:
  memory-service reembed --embedder openai --model text-embedding-3-large --dimensions 3072 --dry-run
      says how many memories and tokens that would be, and changes nothing
  memory-service reembed --embedder openai --model text-embedding-3-large --dimensions 3072
      does all of it
  memory-service reembed --embedder openai --model text-embedding-3-large --no-switch; memory-service reembed --switch
      embeds now, and switches at an hour of your choice

Exit status: 0 done; 1 failed or refused; 2 wrong usage or configuration; 130 or 143 interrupted (Ctrl-C, SIGTERM).
"""

SIGNALLED = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    target = parser.add_argument_group("the new model, which a command that goes on may leave out")
    target.add_argument("--embedder", dest="to_embedder", choices=get_args(EmbedderKind), help="what embeds text then")
    target.add_argument("--model", dest="to_model", metavar="M", help="its model; unset: the embedder's default")
    target.add_argument(
        "--dimensions",
        dest="to_dimensions",
        type=argument_types.number(1, MAX_DIMENSIONS),
        metavar="D",
        help="unset: the model's own",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--batch",
        dest="to_batch",
        type=argument_types.number(1, 10_000),
        metavar="N",
        default=DEFAULT_BATCH,
        help="memories embedded and stored together (%(default)s)",
    )
    how.add_argument(
        "--max-pending",
        dest="to_max_pending",
        type=argument_types.number(0, 1_000_000),
        metavar="N",
        default=DEFAULT_MAX_PENDING,
        help="switch only when so few are left to the embedding queue; each takes 1 ms under the lock (%(default)s)",
    )
    how.add_argument("--no-switch", dest="to_no_switch", action="store_true", help="do all but the switch")
    how.add_argument("--yes", dest="to_yes", action="store_true", help="ask no questions")
    actions = parser.add_argument_group("in place of all that").add_mutually_exclusive_group()
    for action, help_ in (
        ("dry-run", "say what there is to do, and do nothing"),
        ("status", "say how far it is"),
        ("switch", "embed what was written meanwhile, and switch"),
        ("switch-back", "embed what was written since with the old model, and use it again"),
        ("clean-up", "after the switch: drop the old embeddings, and with them the way back"),
        ("cancel", "before the switch: drop the new embeddings"),
    ):
        actions.add_argument(f"--{action}", dest="to_action", action="store_const", const=action, help=help_)
    parser.set_defaults(to_action="move")


def take_request(options: dict[str, Any]) -> Request:
    """Removes what `add_arguments` added from the options and returns it."""
    return Request(**{field.name: options.pop(f"to_{field.name}") for field in fields(Request)})


def run(settings: Settings, request: Request, say: Say) -> int:
    """Does what is asked with the settings of the servers; returns the exit status.

    Raises:
        ConfigurationError: The new model cannot be had with these settings.
        DatabaseError: The database cannot be reached, will not do, or is not where this step needs it.
        EmbeddingError: The new model cannot be used.
    """
    stop = stop_on_signal()
    with provide_database(settings) as provision:
        facts = facts_of(provision.direct_url)
        live = facts.space or embedding_space(settings)
        schema.require(facts, head=revisions.head(), space=live)
        with open_database(provision.direct_url, settings) as database:
            actions = Actions(
                settings=settings,
                request=request,
                database=database,
                direct_url=provision.direct_url,
                live=live,
                say=say,
                confirm=_ask if sys.stdin.isatty() else None,
                stop=stop,
            )
            try:
                if request.action in {"dry-run", "status"}:
                    return actions.run()
                return written_down(database, f"reembed {request.action}", actions.run)
            except Stopped:
                say("interrupted; run again it goes on from here")
                return SIGNALLED + (stop.signal_number or 0)


def _ask(question: str) -> bool:
    """Asks on the terminal."""
    return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}
