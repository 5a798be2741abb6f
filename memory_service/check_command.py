"""`memory-service check`: tries everything the service needs, one line each."""

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass

from db import revisions, schema
from db.connecting import connect, require_session
from db.errors import DatabaseError
from db.facts import facts_of
from db.schema import SchemaFacts
from db.wall_facts import WallFacts, describe, require_wall, wall_of
from memory_service.access.assembly import count_token_keys
from memory_service.certificates import CertificateError, files_of, require_usable
from memory_service.config import ConfigurationError, Settings
from memory_service.embedding import create_embedder
from memory_service.embedding.errors import EmbeddingError
from memory_service.provisioning import Provision, embedding_space, goes_through_pooler, provide_database

Say = Callable[[str], None]

# What a step is expected to fail with; anything else is a defect.
EXPECTED = (CertificateError, ConfigurationError, DatabaseError, EmbeddingError)


@dataclass(slots=True)
class Report:
    """Prints one line for each thing tried, and remembers whether all went well."""

    say: Say
    failed: bool = False

    def step(self, name: str, attempt: Callable[[], str]) -> bool:
        """Tries something; `attempt` returns what to say of it, or raises one of EXPECTED."""
        try:
            found = attempt()
        except EXPECTED as error:
            self.failed = True
            self.say(f"FAIL  {name}: {' '.join(str(error).split())}")
            return False
        self.say(f"ok    {name}: {found}")
        return True


def run(settings: Settings, say: Say) -> int:
    """Tries everything, going on after failures; returns 0 when all is well."""
    report = Report(say)
    report.step("configuration", lambda: _describe(settings))
    if (files := files_of(settings)) is not None:
        report.step("TLS certificate", lambda: f"valid until {require_usable(files).isoformat()}")
    if settings.accepts_tokens:
        report.step("keys of the token issuer", lambda: f"{count_token_keys(settings)} usable")
    _check_database(settings, report)
    _check_embedder(settings, report)
    return 1 if report.failed else 0


def _describe(settings: Settings) -> str:
    database = f"embedded database in {settings.data_dir}" if settings.embedded else "database of MEMORY_DATABASE_URL"
    return f"{database}, embedder {settings.embedder}, {embedding_space(settings)}"


def _check_database(settings: Settings, report: Report) -> None:
    with ExitStack() as opened:
        found: list[tuple[Provision, SchemaFacts, WallFacts]] = []

        def reach() -> str:
            provision = opened.enter_context(provide_database(settings))
            found.append((provision, facts_of(provision.url), wall_of(provision.url)))
            return "reachable"

        if report.step("database", reach):
            provision, facts, wall = found[0]
            if not settings.embedded:
                report.step("connection pooler", lambda: _pooler(provision))
            _check_schema(settings, facts, wall, report)


def _pooler(provision: Provision) -> str:
    if not goes_through_pooler(provision.url):
        return "none"
    with connect(provision.direct_url, autocommit=True) as connection:
        require_session(connection)
    return "found, and a way past it"


def _check_schema(settings: Settings, facts: SchemaFacts, wall: WallFacts, report: Report) -> None:
    if not report.step("PostgreSQL and pgvector", lambda: _versions(facts)):
        return
    report.step("schema", lambda: _revision(settings, facts))
    if facts.space is not None:
        report.step("embedding space", lambda: _space(settings, facts))
    if facts.revision == revisions.head():
        report.step("row-level security", lambda: _wall(settings, wall))


def _versions(facts: SchemaFacts) -> str:
    schema.require_supported(facts)
    pgvector = facts.pgvector_version or f"{facts.pgvector_available} (not created yet)"
    return f"{facts.postgres_version} and {pgvector}"


def _revision(settings: Settings, facts: SchemaFacts) -> str:
    head = revisions.head()
    if facts.revision is not None:
        schema.require_known_revision(facts.revision, head=head)
    if settings.embedded and facts.revision != head:
        return f"at revision {facts.revision or 'none'}; `memory-service serve` brings it to {head}"
    schema.require(facts, head=head, space=facts.space or embedding_space(settings))
    return f"at revision {facts.revision}"


def _space(settings: Settings, facts: SchemaFacts) -> str:
    schema.require_space(facts, embedding_space(settings))
    return str(facts.space)


def _wall(settings: Settings, facts: WallFacts) -> str:
    require_wall(facts)
    off = "" if settings.row_level_security else "off by MEMORY_ROW_LEVEL_SECURITY; the database's is "
    return off + describe(facts)


def _check_embedder(settings: Settings, report: Report) -> None:
    def embed() -> str:
        embedder = create_embedder(settings)
        if embedder is None:
            return "none: callers send embeddings"
        with closing(embedder):
            started_at = time.perf_counter()
            embedder.embed(["memory"], timeout_s=settings.embedding_timeout_s)
            return f"embedded a word in {(time.perf_counter() - started_at) * 1_000:.1f} ms"

    report.step("embedding model", embed)
