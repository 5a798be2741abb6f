"""One server process, put together: what it opens, in which order, and how it closes it again."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector

from db import revisions
from db.access import AccessBuffer
from db.audit_buffer import AuditBuffer
from db.pool import Database, PoolOptions
from db.probe import Probe
from db.reembedding import read_reembedding
from db.schema import SchemaFacts, read_facts, require
from db.search_plan import SearchTuning
from db.search_tuning import TuningState
from db.stored_state import read_stored_state
from db.wall import ACROSS_USERS
from memory_service import __version__, allocator
from memory_service.access.admission import Admission
from memory_service.access.assembly import anonymous, open_authenticator
from memory_service.access.audit import Audit
from memory_service.access.quotas import quota_of_all
from memory_service.access.rate_limit import create_limiter
from memory_service.admin_servicer import AdminServicer
from memory_service.audit_queries import AuditQueries
from memory_service.backfill_count import BackfillCount
from memory_service.certificates import open_certificates
from memory_service.config import Settings
from memory_service.errors import to_status
from memory_service.failures import CUT_OFF
from memory_service.housekeeping import CacheBounds, Housekeeping
from memory_service.import_streams import ImportStreams
from memory_service.key_administration import KeyAdministration
from memory_service.limits import limits_of
from memory_service.messages.ranking_request import RankingDefaults
from memory_service.metrics import Metrics
from memory_service.metrics.listener import MetricsListener
from memory_service.metrics.state import StateMetrics
from memory_service.monitor import DatabaseMonitor
from memory_service.process_parts import ProcessParts
from memory_service.quota_administration import QuotaAdministration
from memory_service.server import Addresses, Server
from memory_service.server_info import ServerFacts
from memory_service.servicer import MemoryServicer
from memory_service.space_settings import SpaceSettings, choose
from memory_service.stack import open_stack
from memory_service.succession import Succession
from memory_service.user_administration import UserAdministration

log = structlog.get_logger(__name__)


def run(
    settings: Settings,
    *,
    database_url: str,
    stop: threading.Event,
    serving: Callable[[Addresses], None],
    ensure_running: Callable[[], None] | None = None,
    share_ports: bool = False,
) -> int:
    """Serves until `stop` is set, then drains; returns the exit status, 0 or CUT_OFF.

    Args:
        settings: The settings.
        database_url: The database, migrated.
        stop: Ends the service.
        serving: Called once calls are accepted.
        ensure_running: Starts the database again if it died.
        share_ports: Whether other processes listen on the same ports.

    Raises:
        AddressError: When a port cannot be bound.
        CertificateError: When the TLS certificate cannot be used.
        DatabaseError: When the database cannot be reached or will not do.
        ConfigurationError: When the embedder, or what checks tokens, cannot be made.
    """
    allocator.keep_little_freed_memory()
    with ExitStack() as closing:
        metrics = Metrics(CollectorRegistry())
        database = Database(database_url, _pool_options(settings))
        closing.callback(database.close)
        database.open()
        admission = Admission(
            authenticator=open_authenticator(settings, database, clock=utc_now, closing=closing),
            limiter=create_limiter(settings),
            audit=_open_audit(settings, database, metrics, closing),
            anonymous=anonymous(settings),
        )
        servicer = _open_servicer(settings, database, database_url, metrics, closing)
        _serve_metrics(settings, metrics.registry, closing)
        server = Server(
            settings,
            servicer,
            administration=_administration(settings, database),
            to_status=to_status,
            metrics=metrics.calls,
            admission=admission,
            certificates=open_certificates(settings, closing),
            count_refusal=metrics.refusals.count,
            end_streams=servicer.end_streams,
            share_ports=share_ports,
        )
        closing.callback(server.close)
        for threads in (*server.bulkheads.all, servicer.import_threads):
            metrics.load.watch(threads)
        probe = Probe(database_url, revision=revisions.head())
        closing.callback(probe.close)
        monitor = DatabaseMonitor(
            probe.check, report=lambda up: server.health.report(serving=up), on_down=ensure_running
        )
        closing.callback(monitor.close)
        addresses = server.start()
        monitor.start()
        serving(addresses)
        stop.wait()
        drained = server.drain()
    log.info("stopped", drained=drained)
    return 0 if drained else CUT_OFF


def _serve_metrics(settings: Settings, registry: CollectorRegistry, closing: ExitStack) -> None:
    if settings.metrics_listen == "off":
        return
    ProcessCollector(registry=registry)
    listener = MetricsListener(settings.metrics_listen, registry)
    closing.callback(listener.close)
    listener.start()


def _open_audit(settings: Settings, database: Database, metrics: Metrics, closing: ExitStack) -> Audit | None:
    """Returns what writes the audit log; None where there is to be none."""
    if settings.audit == "off":
        return None
    buffer = AuditBuffer(database, count=metrics.audit.count)
    buffer.start()
    closing.callback(buffer.close)
    return Audit(buffer, level=settings.audit, clock=utc_now)


def _administration(settings: Settings, database: Database) -> AdminServicer:
    limits = limits_of(settings)
    return AdminServicer(
        users=UserAdministration(
            database=database,
            limits=limits,
            clock=utc_now,
            development=settings.environment == "development",
        ),
        quotas=QuotaAdministration(database=database, limits=limits, clock=utc_now, of_all=quota_of_all(settings)),
        keys=KeyAdministration(database=database, limits=limits, clock=utc_now),
        audit=AuditQueries(database=database, limits=limits),
        new_call=lambda timeout_s: database.call(timeout_s=timeout_s),
    )


def _open_servicer(
    settings: Settings, database: Database, database_url: str, metrics: Metrics, closing: ExitStack
) -> MemoryServicer:
    """Returns the servicer of MemoryService, and opens what it works with; `closing` closes that, in reverse order."""
    accesses = AccessBuffer(database, flush_interval_s=settings.access_flush_interval_s)
    accesses.start()
    closing.callback(accesses.close)
    housekeeping = Housekeeping(
        database,
        clock=utc_now,
        interval_s=settings.purge_interval_s,
        cache=CacheBounds(
            max_rows=settings.embedding_cache_max_rows,
            ttl=timedelta(seconds=settings.embedding_cache_ttl_s),
            on_evict=metrics.embeddings.cache_evicted,
        ),
        audit_retention=timedelta(days=settings.audit_retention_days),
    )
    housekeeping.start()
    closing.callback(housekeeping.close)
    tuning = TuningState(
        SearchTuning(ef_search=settings.ef_search, candidates_factor=settings.candidates_factor),
        target=settings.recall_target,
    )
    backfill = BackfillCount(database)
    closing.callback(backfill.close)
    backfill.start()
    metrics.registry.register(
        StateMetrics(database=database, accesses=accesses, tuning=tuning, backfill=backfill.latest, clock=utc_now)
    )
    limits = limits_of(settings)
    ranking = RankingDefaults(preset=settings.ranking, dense_weight=settings.dense_weight)
    parts = ProcessParts(
        database=database,
        database_url=database_url,
        accesses=accesses,
        tuning=tuning,
        metrics=metrics,
        limits=limits,
        ranking=ranking,
        clock=utc_now,
    )
    facts = database.read(database.call(), read_facts, user_id=ACROSS_USERS)
    stacks = Succession(database, lambda: open_stack(_space_settings(settings, database), parts))
    closing.callback(stacks.close)
    stacks.start()
    imports = ImportStreams(settings.import_streams)
    closing.callback(imports.close)
    return MemoryServicer(
        stacks=stacks,
        imports=imports,
        facts=_server_facts(facts),
        stored_state=lambda call: database.read(call, read_stored_state, user_id=ACROSS_USERS),
        backfill=backfill.latest,
        limits=limits,
        ranking=ranking,
    )


def _space_settings(settings: Settings, database: Database) -> SpaceSettings:
    """Returns the settings for the space that the database is in now.

    Raises:
        SchemaMismatch: When it is not the configured one, and no re-embedding put the database there.
    """
    facts, move = database.read(
        database.call(), lambda conn: (read_facts(conn), read_reembedding(conn)), user_id=ACROSS_USERS
    )
    chosen = choose(settings, facts.space, move)
    require(facts, head=revisions.head(), space=chosen.space)
    return chosen


def utc_now() -> datetime:
    """Returns the current time."""
    return datetime.now(UTC)


def _pool_options(settings: Settings) -> PoolOptions:
    return PoolOptions(
        min_size=settings.pool_min_size,
        max_size=settings.pool_max_size,
        timeout_s=settings.pool_timeout_s,
        statement_timeout_s=settings.statement_timeout_s,
        slow_query_ms=settings.slow_query_ms,
        prepared_statements=settings.prepared_statements,
        row_level_security=settings.row_level_security,
    )


def _server_facts(facts: SchemaFacts) -> ServerFacts:
    return ServerFacts(
        version=__version__,
        schema_revision=facts.revision or "",
        postgres_version=facts.postgres_version,
        pgvector_version=facts.pgvector_version or "",
    )
