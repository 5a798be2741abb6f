"""A memory service: gRPC in front of PostgreSQL and pgvector.

A request passes each layer once, and a layer knows only those below it:

    __main__, *_command                 the command line
    supervisor, worker                  several processes on one port
    service                             one process: what it opens and closes, and in which order
    server, health, reflection          what listens, and what it tells about itself
    access                              who calls, what they may do and how much
    interceptors, observed_call         request ids, the access log, the one place where errors become statuses
    servicer, stack                     which stack of parts a call goes to, one for each embedding model
    writing, searching, recall, ...     what a call means; nothing of SQL
    messages                            between the contract's messages and ours
    embedding, ranking                  text to vectors, and candidates to results
    ----------------------------------
    db                                  SQL; nothing of gRPC
"""

from importlib.metadata import version

__version__ = version("memory-service")
