"""One server process, put together: what it opens, in which order, and how it closes it again."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector
from pydantic import SecretStr

from db import migrate
from db.access import AccessBuffer
from db.ann_demand import AnnDemand
from db.ann_maintenance import AnnMaintenance
from db.ann_registry import AnnRegistry
from db.cancellation import Call
from db.pool import Database, PoolOptions
from db.probe import Probe
from db.recall_probe import RecallProbe
from db.schema import read_facts, require
from db.search_plan import SearchTuning, coarse_of
from db.search_tuning import TuningState
from db.stored_state import read_stored_state
from db.user_sizes import UserSizes
from memory_service import __version__
from memory_service.ann_settings import ann_policy, supports_ann
from memory_service.config import Settings
from memory_service.embedding import create_embedder
from memory_service.embedding_chain import assemble
from memory_service.embedding_queue import EmbeddingQueue, QueueOptions
from memory_service.errors import to_status
from memory_service.failures import CUT_OFF
from memory_service.global_recall import GlobalRecall
from memory_service.housekeeping import CacheBounds, Housekeeping
from memory_service.import_streams import ImportStreams
from memory_service.importing import Importing
from memory_service.limits import limits_of
from memory_service.metrics import Metrics
from memory_service.metrics_listener import MetricsListener
from memory_service.monitor import DatabaseMonitor
from memory_service.provisioning import embedding_space
from memory_service.ranking_request import RankingDefaults
from memory_service.recall import Recall
from memory_service.search_outcome import Outcome
from memory_service.searching import Searching
from memory_service.server import Addresses, Server
from memory_service.server_info import ServerFacts
from memory_service.servicer import MemoryServicer
from memory_service.state_metrics import StateMetrics
from memory_service.text_embeddings import TextEmbeddings
from memory_service.vector_cache import CacheOptions
from memory_service.writing import Writing

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
        DatabaseError: When the database cannot be reached or will not do.
        ConfigurationError: When the embedder cannot be made.
    """
    with ExitStack() as closing:
        metrics = Metrics(CollectorRegistry())
        servicer = _open(settings, database_url, metrics, closing)
        _serve_metrics(settings, metrics.registry, closing)
        server = Server(
            settings,
            servicer,
            to_status=to_status,
            metrics=metrics.calls,
            end_streams=servicer.end_streams,
            share_ports=share_ports,
        )
        closing.callback(server.close)
        probe = Probe(database_url, revision=migrate.head())
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


def _open(settings: Settings, database_url: str, metrics: Metrics, closing: ExitStack) -> MemoryServicer:
    """Opens what the servicer works with; `closing` closes it, in reverse order."""
    embedder = create_embedder(settings)
    if embedder is not None:
        embedder = assemble(embedder, settings, metrics.embeddings)
        closing.callback(embedder.close)
    database = Database(database_url, _pool_options(settings))
    closing.callback(database.close)
    database.open()
    facts = _facts(settings, database)
    accesses = AccessBuffer(database, flush_interval_s=settings.access_flush_interval_s)
    accesses.start()
    closing.callback(accesses.close)
    cache_ttl = timedelta(seconds=settings.embedding_cache_ttl_s)
    housekeeping = Housekeeping(
        database,
        clock=utc_now,
        interval_s=settings.purge_interval_s,
        cache=CacheBounds(
            max_rows=settings.embedding_cache_max_rows, ttl=cache_ttl, on_evict=metrics.embeddings.cache_evicted
        ),
    )
    housekeeping.start()
    closing.callback(housekeeping.close)
    ann = AnnRegistry(database)
    ann.start()
    closing.callback(ann.close)
    rules = ann_policy(settings)
    if supports_ann(settings):
        maintenance = AnnMaintenance(
            (settings.direct_database_url or SecretStr(database_url)).get_secret_value(),
            rules,
            interval_s=settings.ann_maintenance_interval_s,
            build_memory_mb=settings.ann_build_memory_mb,
        )
        maintenance.start()
        closing.callback(maintenance.close)
    demand = AnnDemand(database, ann, policy=rules, clock=utc_now)
    sizes = UserSizes(database, counted=demand.counted)
    sizes.start()
    closing.callback(sizes.close)
    tuning = TuningState(
        SearchTuning(ef_search=settings.ef_search, candidates_factor=settings.candidates_factor),
        target=settings.recall_target,
    )
    recall_probe = RecallProbe(
        database,
        tuning,
        metrics.searches,
        coarse=coarse_of(settings.dimensions),
        fraction=settings.recall_probe_fraction,
        clock=utc_now,
    )
    recall_probe.start()
    closing.callback(recall_probe.close)
    metrics.registry.register(StateMetrics(database=database, accesses=accesses, tuning=tuning, clock=utc_now))
    embeddings = (
        TextEmbeddings(
            embedder,
            database,
            utc_now,
            cache=CacheOptions(
                enabled=settings.embedding_cache_max_rows > 0,
                ttl=cache_ttl,
                on_look_up=metrics.embeddings.cache_looked_up,
            ),
        )
        if embedder is not None
        else None
    )
    queue = _embedding_queue(settings, database, embeddings, metrics)
    if queue is not None:
        queue.start()
        closing.callback(queue.close)
    wake_queue = queue.wake if queue is not None else lambda: None
    limits = limits_of(settings)
    ranking = RankingDefaults(preset=settings.ranking, dense_weight=settings.dense_weight)
    imports = ImportStreams(settings.import_streams)
    closing.callback(imports.close)

    def new_call(timeout_s: float | None) -> Call:
        return database.call(timeout_s=timeout_s)

    def observe(user_id: str, outcome: Outcome) -> None:
        metrics.searches.searched(outcome.plan, outcome.considered)
        if outcome.dense is not None:
            recall_probe.offer(user_id, *outcome.dense)

    return MemoryServicer(
        writing=Writing(
            database=database,
            embeddings=embeddings,
            dimensions=settings.dimensions,
            limits=limits,
            clock=utc_now,
            wake_queue=wake_queue,
        ),
        importing=Importing(
            database=database,
            embeddings=embeddings,
            dimensions=settings.dimensions,
            limits=limits,
            clock=utc_now,
            wake_queue=wake_queue,
        ),
        imports=imports,
        searching=Searching(
            database=database,
            accesses=accesses,
            embeddings=embeddings,
            ann=ann,
            sizes=sizes,
            tuning=lambda: tuning.current,
            observe=observe,
            ranking=ranking,
            dimensions=settings.dimensions,
            limits=limits,
            clock=utc_now,
        ),
        recall=Recall(
            database=database,
            accesses=accesses,
            embeddings=embeddings,
            dimensions=settings.dimensions,
            limits=limits,
            clock=utc_now,
        ),
        global_recall=GlobalRecall(
            enabled=settings.global_search,
            database=database,
            embeddings=embeddings,
            tuning=lambda: tuning.current,
            dimensions=settings.dimensions,
            limits=limits,
        ),
        facts=facts,
        stored_state=lambda call: database.read(call, read_stored_state),
        limits=limits,
        ranking=ranking,
        new_call=new_call,
    )


def _embedding_queue(
    settings: Settings, database: Database, embeddings: TextEmbeddings | None, metrics: Metrics
) -> EmbeddingQueue | None:
    """Returns what embeds what was stored with embed_async; None without an embedder."""
    if embeddings is None:
        return None
    options = QueueOptions(
        threads=settings.embedding_queue_threads,
        poll_s=settings.embedding_queue_poll_s,
        batch=settings.embedding_queue_batch,
        lease_s=settings.embedding_queue_lease_s,
        max_attempts=settings.embedding_queue_attempts,
        first_delay_s=settings.embedding_queue_delay_s,
    )
    return EmbeddingQueue(database, embeddings, options, clock=utc_now, count=metrics.embedding_queue.count)


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
    )


def _facts(settings: Settings, database: Database) -> ServerFacts:
    facts = database.read(database.call(), read_facts)
    require(facts, head=migrate.head(), space=embedding_space(settings))
    return ServerFacts(
        version=__version__,
        schema_revision=facts.revision or "",
        postgres_version=facts.postgres_version,
        pgvector_version=facts.pgvector_version or "",
        embedder=settings.embedder,
        embedding_model=settings.model,
        embedding_dimensions=settings.dimensions,
    )
