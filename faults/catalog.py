"""The scenarios by name, with what each promises and how it is brought about: the rows of docs/reliability.md."""

from functools import partial

from faults.postgres import FAST, IMMEDIATE
from faults.scenario import Scenario
from faults.scenarios import callers, database, disk, replication, server, surroundings

SCENARIOS = (
    Scenario(
        "embedded-killed",
        "kill -9 of the embedded PostgreSQL",
        "It is started again by the service; calls are UNAVAILABLE meanwhile.",
        "One backend is killed, then the postmaster alone, then all processes together.",
        database.embedded_killed,
    ),
    Scenario(
        "worker-killed",
        "kill -9 of a server process, `--workers 2`",
        "The other one goes on; the supervisor replaces the dead one.",
        "Each of the two in turn.",
        server.worker_killed,
    ),
    Scenario(
        "supervisor-killed",
        "kill -9 of the supervisor, `--workers 2`",
        "Its workers end by themselves, so that the port is free for the next one.",
        "A new service is started on the same port; the time counts from when it serves.",
        server.all_killed,
    ),
    Scenario(
        "told-to-stop",
        "SIGTERM under load, with imports streaming and health watched",
        "Calls under way are answered, watchers are told NOT_SERVING, imports end after a chunk and are resumable; "
        "exit status 0.",
        "Two imports, five watches; then a new service on the same port, on which the imports are resumed.",
        server.told_to_stop,
    ),
    Scenario(
        "restarted-fast",
        "PostgreSQL restarted, mode fast",
        "UNAVAILABLE meanwhile, connections are replaced.",
        "SIGINT to the postmaster, and a new start; twice.",
        partial(database.restarted, mode=FAST),
    ),
    Scenario(
        "restarted-immediate",
        "PostgreSQL restarted, mode immediate",
        "As above, after crash recovery.",
        "SIGQUIT to the postmaster, and a new start; twice.",
        partial(database.restarted, mode=IMMEDIATE),
    ),
    Scenario(
        "paused",
        "PostgreSQL paused for 20 s",
        "Calls end at their deadline; NOT_SERVING meanwhile.",
        "SIGSTOP to all its processes, then SIGCONT.",
        database.paused,
    ),
    Scenario(
        "out-of-connections",
        "PostgreSQL has no connection left",
        "UNAVAILABLE or RESOURCE_EXHAUSTED meanwhile.",
        "Other clients take all 40 for 8 s, those of the service included.",
        database.out_of_connections,
    ),
    Scenario(
        "read-only",
        "PostgreSQL read-only (25006)",
        "Writes are UNAVAILABLE, reads go on; NOT_SERVING meanwhile.",
        "`default_transaction_read_only` is set for the whole server for 8 s.",
        database.read_only,
    ),
    Scenario(
        "primary-killed",
        "Failover: primary killed, standby promoted",
        "The service finds the new primary by itself.",
        "A synchronous standby made by pg_basebackup; both hosts in one DSN with `target_session_attrs=read-write`. "
        "The time counts from the end of the promotion.",
        replication.primary_killed,
    ),
    Scenario(
        "tables-full",
        "Disk full: tables",
        "Writes that need space are RESOURCE_EXHAUSTED (STORAGE_FULL), reads go on.",
        "The tablespace lies on a tmpfs, which a file fills for 8 s.",
        disk.tables_full,
    ),
    Scenario(
        "everything-full",
        "Disk full: tables and write-ahead log",
        "PostgreSQL stops; the service starts it again once there is space.",
        "The embedded PostgreSQL's data directory lies on a tmpfs, which a file fills for 8 s while new log files are "
        "demanded.",
        disk.everything_full,
    ),
    Scenario(
        "provider-down",
        "Embedding provider down",
        "Calls that need an embedding are UNAVAILABLE meanwhile.",
        "It answers 503, then hangs, then resets connections, 5 s each; nothing is cached.",
        surroundings.provider_down,
    ),
    Scenario(
        "cancelled-calls",
        "20,000 cancelled calls",
        "Their queries end, what they stored is whole and there once; other callers are served.",
        "Five kinds of calls from eight threads, cancelled after 0 to 20 ms, until 20,000 have ended so.",
        callers.cancelled,
    ),
    Scenario(
        "slow-callers",
        "Slow-loris clients",
        "Other callers are served.",
        "300 connections that send a byte every 0.2 s, 60 calls whose message never comes, 8 imports without chunks, "
        "for 12 s.",
        callers.slow,
    ),
    Scenario(
        "clock-stepped",
        "Clock set",
        "Nothing depends on the calendar going forward.",
        "An hour ahead, two back, one ahead, for the service and its PostgreSQL alone, by a preloaded library: the "
        "monotonic clock and the kernel's timers go on as ever.",
        surroundings.clock_stepped,
    ),
)
