"""The log: one event a line on standard error, libraries included, and nothing that is private."""

import json
import subprocess
import sys
from typing import Any

PRELUDE = """
import logging, structlog
from memory_service import logs
logs.configure(level={level!r}, log_format={log_format!r})
log = structlog.get_logger("memory_service.example")
"""


def run(script: str, *, level: str = "info", log_format: str = "json") -> str:
    """Returns what a process that configures the log and runs `script` writes to standard error."""
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE.format(level=level, log_format=log_format) + script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout == ""
    return result.stderr


def events(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_events_and_records_of_libraries_take_the_same_form() -> None:
    output = run(
        "structlog.contextvars.bind_contextvars(request_id='r1')\n"
        "log.warning('slow_query', statement='memories.get')\n"
        "logging.getLogger('psycopg.pool').warning('error connecting in %r', 'memory')\n"
    )
    ours, theirs = events(output)
    assert list(ours)[:3] == list(theirs)[:3] == ["timestamp", "level", "event"]
    assert ours["logger"] == "memory_service.example"
    assert (ours["event"], ours["statement"], ours["request_id"]) == ("slow_query", "memories.get", "r1")
    assert (theirs["event"], theirs["logger"]) == ("error connecting in 'memory'", "psycopg.pool")
    assert theirs["request_id"] == "r1"


def test_the_level_holds_for_both() -> None:
    script = "log.info('ours')\nlogging.getLogger('grpc').info('theirs')\nlog.warning('loud')\n"
    assert [event["event"] for event in events(run(script, level="warning"))] == ["loud"]
    assert [event["event"] for event in events(run(script, level="debug"))] == ["ours", "theirs", "loud"]


def test_wordllama_does_not_add_a_handler_of_its_own() -> None:
    output = run("import wordllama\nlogging.getLogger('grpc').warning('once')\nlog.warning('twice')\n")
    assert [event["event"] for event in events(output)] == ["once", "twice"]


def test_libraries_that_log_bodies_and_headers_are_kept_quiet() -> None:
    script = (
        "for name in ('openai._base_client', 'httpx', 'httpcore.http11'):\n"
        "    logging.getLogger(name).debug('Authorization: Bearer sk-1 input: my secret memory')\n"
        "    logging.getLogger(name).info('HTTP Request: POST')\n"
    )
    assert run(script, level="debug") == ""


def test_what_grpc_says_of_bad_headers_is_left_out() -> None:
    output = run(
        "grpc = logging.getLogger('grpc._cython.cygrpc')\n"
        "grpc.error('Invalid encoding on %s', b'Bearer secret\\xff')\n"
        "grpc.error('something else')\n"
    )
    assert [event["event"] for event in events(output)] == ["something else"]


def test_a_traceback_shows_no_local_variables() -> None:
    script = (
        "def remember(content):\n"
        "    raise RuntimeError('defect')\n"
        "try:\n"
        "    remember(chr(115) + 'ecret text')\n"
        "except RuntimeError:\n"
        "    log.exception('internal_error')\n"
        "    logging.getLogger('grpc').exception('theirs')\n"
    )
    for log_format in ("json", "console"):
        output = run(script, log_format=log_format)
        assert output.count("RuntimeError: defect") == 2
        assert "secret text" not in output


def test_a_line_break_in_a_value_starts_no_new_line() -> None:
    output = run("log.info('call', peer='a\\n{\"event\": \"forged\"}')\n")
    assert [event["event"] for event in events(output)] == ["call"]


def test_without_a_terminal_the_log_is_json() -> None:
    assert events(run("log.info('serving')\n", log_format="auto"))[0]["event"] == "serving"
    assert not run("log.info('serving')\n", log_format="console").startswith("{")


def test_warnings_go_to_the_log() -> None:
    [event] = events(run("import warnings\nwarnings.warn('old habit')\n"))
    assert (event["level"], event["logger"]) == ("warning", "py.warnings")
    assert "old habit" in event["event"]
