"""A memory service: gRPC in front of PostgreSQL and pgvector.

A request passes each layer once, and a layer knows only those below it:

    __main__, *_command                the command line
    supervisor, worker                 several processes on one port
    service                            one process: what it opens and closes, and in which order
    server, health, reflection         what listens, and what it tells about itself
    interceptors                       request ids, the access log, the one place where errors become statuses
    servicer, writing, recall          what a call means; nothing of SQL
    fields, requests, replies, errors  between the contract's messages and ours
    embedding                          text to vectors
    ---------------------------------
    db                                 SQL; nothing of gRPC
"""

from importlib.metadata import version

__version__ = version("memory-service")
