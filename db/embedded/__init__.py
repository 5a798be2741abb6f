"""Runs a PostgreSQL of our own, for users who have none: `EmbeddedPostgres.start(data_dir)`.

server       starts, attaches to, restarts and stops the PostgreSQL of one data directory
postmaster   says whether a PostgreSQL serves a data directory, and clears what a killed one left
cluster      makes the folder of its data and writes our settings into it
settings     chooses PostgreSQL's settings for this machine
programs     runs initdb and pg_ctl
socket_dir   chooses the folder of its socket
account      chooses the operating-system account it runs under
locks        says which processes use a data directory, by file locks the kernel frees
"""

from db.embedded.errors import EmbeddedPostgresError
from db.embedded.server import EmbeddedPostgres

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError"]
