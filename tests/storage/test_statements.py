"""Every statement on what users own says whose rows it means: an id alone is never authorization."""

import importlib
import itertools
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType

import pytest
from psycopg.sql import Composable

import db
from db import candidates as of_candidates
from db import fetch, filters, recent, search_statements
from db.connection import name_of
from db.filters import Filter
from db.memory import View
from db.search_plan import Coarse
from db.search_statements import Metric, shape_of

OWNED = ("users", "conversations", "memory_entries", "memory_access", "request_ids", "embedding_jobs", "user_quotas")
NAMED = re.compile(r"\s*/\* [a-z_]+\.[a-z_]+ \*/")

# Statements that serve no single user, and why they may.
EXCEPTIONS = {
    "delete.purge": "housekeeping: takes rows by their own (user_id, id) because their time has come",
    "requests.purge": "housekeeping: likewise, by (user_id, request_id)",
    "embedding_jobs.take": "the queue is worked off in its order; jobs and memories meet by (user_id, id)",
    "embedding_jobs.take_of_each": "likewise, of users in turn",
    "embedding_jobs.embed": "writes embeddings of many users' memories, each under the (user_id, id) of its job",
    "embedding_jobs.finish": "ends jobs under the (user_id, id) they were taken with",
    "embedding_jobs.postpone": "likewise",
    "reembedding_backfill.store": "writes embeddings of many users' memories, by the (user_id, id) they were read with",
    "access.flush": "writes counters of many users' memories, each under the (user_id, id) it was recorded with",
}
# Statements across users by their purpose: operators' analysis, the care of indexes, what waits for its embedding, and
# moving all of a database to another model.
ACROSS_USERS = {
    *("global_search.walk", "global_search.compare", "global_search.rows", "ann_counts.earned"),
    "embedding_turns.waiting_users",
    *("embedding_queue_state.counts", "embedding_queue_state.by_user", "embedding_queue_state.failed"),
    "embedding_queue_state.retry",
    *("reembedding_backfill.progress", "reembedding_backfill.stale", "reembedding_switch.behind"),
    "reembedding_estimate.estimate",
    *("user_list.page", "user_list.ids"),
    "user_quotas.any",
    *("reembedding_switch.pending", "reembedding_switch.refused", "reembedding_switch.embedded"),
}
OF_ALL_FILTERS = [Filter(), Filter(conversation_id="c", show_deleted=True), Filter(show_deleted=True)]


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(db.__path__, "db."):
        yield importlib.import_module(found.name)


def texts(value: object) -> Iterator[str]:
    """Yields the statements in a module's constant: itself, or what a table of them holds."""
    if isinstance(value, dict):
        for one in value.values():
            yield from texts(one)
    elif isinstance(value, bytes):
        yield value.decode(errors="replace")
    elif isinstance(value, Composable):
        yield value.as_string(None)
    elif isinstance(value, str):
        yield value


def constants() -> dict[str, set[str]]:
    """Returns the statements in db's modules by name; one name may have several forms."""
    found: dict[str, set[str]] = {}
    for module in modules():
        for value in vars(module).values():
            for text in texts(value):
                if NAMED.match(text):
                    found.setdefault(name_of(text.encode()), set()).add(text)
    return found


def composed() -> dict[str, set[str]]:
    """Returns the statements that are made of the templates among the constants, as they are run."""
    # The modules keep these functions to themselves, and nothing else makes a template a statement.
    shapes = [
        shape_of(metric, view, filter_.compiled(), exclude=exclude)
        for metric, view, filter_, exclude in itertools.product(Metric, View, OF_ALL_FILTERS, [False, True])
    ]
    tables = {search_statements.table(shape).decode() for shape in shapes}
    candidates = {
        search_statements.candidates(shape, coarse).decode()
        for shape, coarse in itertools.product(shapes, [Coarse.EMBEDDING, Coarse.SIGNS])
    }
    lists = {
        recent._statement(view, filter_.compiled().names, None, after=after).decode()  # noqa: SLF001 - see above
        for view, filter_, after in itertools.product(View, OF_ALL_FILTERS, [False, True])
    }
    walks = {search_statements.ann(shape, "u").decode() for shape in shapes if "show_deleted" not in shape.filter_names}
    names = [filter_.compiled().names for filter_ in OF_ALL_FILTERS]
    chosen = {fetch._chosen(view, of, None).decode() for view, of in itertools.product(View, names)}  # noqa: SLF001
    features = {
        of_candidates._features(of, None, cosine=cosine, embeddings=embeddings).decode()  # noqa: SLF001
        for of, cosine, embeddings in itertools.product(names, [False, True], [False, True])
    }
    return {
        "search.table": tables,
        "search.candidates": candidates,
        "search.ann": walks,
        "recent.page": lists,
        "fetch.chosen": chosen,
        "candidates.features": features,
    }


STATEMENTS = constants() | composed()


def owned_tables(statement: str) -> list[str]:
    """Returns the tables of users' data that a statement reads or writes, as often as it does."""
    return re.findall(rf"\b(?:FROM|JOIN|INTO|UPDATE|USING)\s+({'|'.join(OWNED)})\b", statement)


def scopes(statement: str) -> int:
    """Returns how many of the tables a statement confines to a user."""
    inserted = re.findall(r"INSERT INTO \w+ \(\s*user_id\b", statement)
    compared = re.findall(r"\buser_id = (?:%\(user_id\)s|'u'|\w+\.user_id)", statement)
    return len(inserted) + len(compared)


def test_the_walk_finds_the_statements() -> None:
    assert {
        "insert.one",
        "bulk_insert.rows",
        "insert.owners",
        "insert.taken",
        "fetch.one",
        "fetch.for_update",
        "update.one",
        "update.with_embedding",
        "update.conversation",
        "delete.soft",
        "delete.hard",
        "delete.restore",
        "search.table",
        "search.candidates",
        "recent.page",
        "stats.user",
        "requests.find",
        "requests.claim",
        "requests.complete",
        *EXCEPTIONS,
    } <= STATEMENTS.keys()
    assert len(STATEMENTS["fetch.one"]) == len(View)


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_statement_on_user_data_names_the_user(name: str) -> None:
    for statement in STATEMENTS[name]:
        tables = owned_tables(statement)
        if tables and name not in EXCEPTIONS.keys() | ACROSS_USERS:
            assert scopes(statement) >= len(tables), f"{name} reaches {tables} beyond its user:\n{statement}"
            # The planner recognizes a user's own index by the literal.
            assert ("user_id = 'u'" if name == "search.ann" else "%(user_id)s") in statement


@pytest.mark.parametrize("name", sorted(EXCEPTIONS))
def test_exceptions_are_needed_and_address_rows_by_user(name: str) -> None:
    for statement in STATEMENTS[name]:
        assert "%(user_id)s" not in statement
        assert scopes(statement) >= 1


def test_a_statement_without_its_user_would_be_found() -> None:
    lax = "/* a.b */ SELECT 1 FROM memory_entries m JOIN memory_access a ON a.user_id = m.user_id WHERE m.id = %(id)s"
    assert scopes(lax) < len(owned_tables(lax))
    unconfined = "/* a.b */ SELECT 1 FROM memory_entries WHERE deleted_at IS NULL"
    assert scopes(unconfined) < len(owned_tables(unconfined))
    assert scopes("/* a.b */ DELETE FROM users") < len(owned_tables("/* a.b */ DELETE FROM users"))
    confined = filters.of_user([]).as_string(None)
    assert scopes(f"/* a.b */ SELECT 1 FROM memory_entries WHERE {confined}") == 1  # noqa: S608 - not run
