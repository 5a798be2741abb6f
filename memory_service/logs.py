"""The log: one line an event on stderr, JSON or console, for this code and for the libraries alike."""

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]

# Below WARNING the first log request bodies and headers: the texts of memories, and the provider's API key. Alembic
# says again what db.migrate says.
QUIETENED = ("openai", "httpx", "httpcore", "httpx2", "httpcore2", "urllib3", "alembic")

# gRPC logs each header that is no UTF-8, value and traceback, on the thread that accepts calls: it may be a key with
# one wrong byte. The call is refused, and its own line says why.
BAD_HEADER_LOGGER, BAD_HEADER = "grpc._cython.cygrpc", "Invalid encoding on"


def configure(*, level: Level, log_format: Format) -> None:
    """Sends structlog and the standard library's logging through one formatter to stderr."""
    threshold = getattr(logging, level.upper())
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        formatter(
            foreign_pre_chain=shared,
            processors=[formatter.remove_processors_meta, *_renderers(console=console)],
        )
    )
    root = logging.getLogger()
    # A root that has a handler also makes logging.basicConfig, which wordllama calls on import, do nothing.
    root.handlers = [handler]
    root.setLevel(threshold)
    for name in QUIETENED:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))
    keep_headers_out()
    logging.captureWarnings(True)


def keep_headers_out() -> None:
    """Leaves out what gRPC says of headers that are no UTF-8."""
    logging.getLogger(BAD_HEADER_LOGGER).addFilter(_is_no_bad_header)


def _is_no_bad_header(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(BAD_HEADER)


def _renderers(*, console: bool) -> list[Processor]:
    if console:
        # Plain tracebacks: the pretty ones print local variables, which hold the texts of memories.
        return [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    return [structlog.processors.format_exc_info, _what_first, structlog.processors.JSONRenderer()]


def _what_first(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Puts what every line has in front, for those who read JSON by eye."""
    return {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event} | dict(event)
