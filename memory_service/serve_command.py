"""`memory-service serve`: prepares the database and serves, in this process or in several."""

import threading
from contextlib import ExitStack

import structlog

from db import revisions
from db.probe import Probe
from memory_service import __version__, service
from memory_service.addresses import is_loopback, nth, require_free, require_protection
from memory_service.certificates import files_of, require_usable
from memory_service.config import Settings
from memory_service.monitor import DatabaseMonitor
from memory_service.provisioning import Provision, provide_database, require_schema
from memory_service.server import Addresses
from memory_service.signals import stop_on_signal
from memory_service.supervisor import Supervisor

log = structlog.get_logger(__name__)


def run(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status, 0 when no call was cut off.

    Raises:
        AddressError: When an address must not be listened on, or cannot.
        CertificateError: When the TLS certificate cannot be used.
        DatabaseError: When the database cannot run or be reached, or its schema is not the one needed.
        ConfigurationError: When the embedder cannot be made.
    """
    stop = stop_on_signal()
    log.info("starting", version=__version__, workers=settings.workers, embedder=settings.embedder)
    _require_addresses(settings)
    with provide_database(settings) as provision:
        require_schema(settings, provision)
        if settings.workers > 1:
            return _supervise(settings, provision, stop)
        return service.run(
            settings,
            database_url=provision.url,
            stop=stop,
            serving=_announce,
            ensure_running=provision.ensure_running,
        )


def _require_addresses(settings: Settings) -> None:
    # Before anything that takes time. The ops address and the one for metrics may be open to others: they tell them
    # how the service does, and nothing of what it stores.
    if not settings.insecure:
        require_protection(settings)
    if settings.environment == "development" and settings.auth == "off" and not is_loopback(settings.listen):
        log.warning("anybody_may_clear_the_database", listen=settings.listen, environment=settings.environment)
    if (files := files_of(settings)) is not None:
        require_usable(files)
    metrics = (nth(settings.metrics_listen, index) for index in range(settings.workers))
    for address in (settings.listen, settings.ops_listen, *metrics):
        if address != "off":
            require_free(address)


def _announce(addresses: Addresses) -> None:
    log.info("serving", listen=addresses.listen, ops_listen=addresses.ops_listen or "off")


def _supervise(settings: Settings, provision: Provision, stop: threading.Event) -> int:
    with ExitStack() as closing:
        if provision.ensure_running is not None:
            # The workers report on the database each for itself; bringing it back is for its owner.
            probe = Probe(provision.url, revision=revisions.head())
            closing.callback(probe.close)
            monitor = DatabaseMonitor(probe.check, report=lambda _: None, on_down=provision.ensure_running)
            closing.callback(monitor.close)
            monitor.start()
        return Supervisor(settings, database_url=provision.url, stop=stop).run()
