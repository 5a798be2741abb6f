"""A memory service: gRPC in front of PostgreSQL and pgvector.

A request passes each layer once, and a layer knows only those below it:

    __main__, serve, check, migrate          the command line
    supervisor                               several processes on one port
    service                                  one process: what it opens and closes, and in which order
    server, health, reflection               what listens
    interceptors                             request ids, the access log, the one place errors become statuses
    servicer, convert, validation, errors    what a call means; nothing of SQL
    embedding                                text to vectors
    ------------------------------------
    db                                       SQL; nothing of gRPC
"""

from importlib.metadata import version

__version__ = version("memory-service")
