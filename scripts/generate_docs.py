"""Writes the tables of the documentation that follow from the code, or with --check tells whether they are stale.

The settings come from memory_service.config, the limits and the reasons of errors from the contract's comments, the
metrics from what the service registers. Each table stands between a pair of markers: <!-- settings: made by
`make docs` --> and <!-- end of settings -->.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from prometheus_client import CollectorRegistry
from pydantic.fields import FieldInfo

from db.access import AccessBuffer
from db.pool import Database, PoolOptions
from db.search_plan import SearchTuning
from db.search_tuning import TuningState
from memory_service.config import Settings, variables
from memory_service.limits import KIB, MIB, limits_of
from memory_service.metrics import Metrics
from memory_service.metrics.state import StateMetrics

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
OPERATIONS = ROOT / "docs" / "operations.md"
DESCRIPTORS = ROOT / "memory_service/v1/memory.protoset"
CONTRACT = "memory_service/v1/memory.proto"

REASON_PREFIX = "ERROR_REASON_"

# Field numbers of descriptor.proto, of which the paths of comments are made.
MESSAGES, ENUMS, FIELDS, ENUM_VALUES = 4, 5, 2, 2


def settings_table() -> str:
    """Returns a row for each setting: variables, default, values, meaning."""
    rows = [
        (
            " or ".join(f"`{variable}`" for variable in variables(name)),
            _default(field),
            _values(field),
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]
    return _table(("Variable", "Default", "Values", "Meaning"), rows)


def limits_table() -> str:
    """Returns a row for each limit that GetServerInfo reports: name, value under the default settings, meaning."""
    limits = limits_of(Settings.model_construct())
    comments = _comments()
    contract = _contract()
    index, message = next((i, m) for i, m in enumerate(contract.message_type) if m.name == "Limits")
    rows = [
        (
            f"`{field.name}`",
            _quantity(field.name, getattr(limits, field.name)),
            comments[MESSAGES, index, FIELDS, position],
        )
        for position, field in enumerate(message.field)
    ]
    return _table(("Limit", "Value", "Meaning"), rows)


def reasons_table() -> str:
    """Returns a row for each reason of an error: status code, reason, meaning."""
    comments = _comments()
    index, enum = next((i, e) for i, e in enumerate(_contract().enum_type) if e.name == "ErrorReason")
    rows = []
    for position, value in enumerate(enum.value):
        if value.number == 0:
            continue
        code, _, meaning = comments[ENUMS, index, ENUM_VALUES, position].partition(": ")
        rows.append((code, f"`{value.name.removeprefix(REASON_PREFIX)}`", meaning[:1].upper() + meaning[1:]))
    return _table(("Code", "Reason", "Meaning"), sorted(rows, key=lambda row: row[0]))


def metrics_table() -> str:
    """Returns a row for each metric: name, type, labels, meaning."""
    registry = CollectorRegistry()
    Metrics(registry)
    # Not opened: what a database would tell is missing, the metrics are there.
    database = Database("", PoolOptions())
    accesses = AccessBuffer(database, flush_interval_s=1.0)
    registry.register(
        StateMetrics(
            database=database,
            accesses=accesses,
            tuning=TuningState(SearchTuning(), target=1.0),
            clock=lambda: datetime.now(UTC),
        )
    )
    rows = [
        (
            f"`{family.name}{'_total' if family.type == 'counter' else ''}`",
            family.type,
            ", ".join(f"`{label}`" for label in family.samples[0].labels if label != "le"),
            family.documentation,
        )
        for family in registry.collect()
    ]
    database.close()
    return _table(("Metric", "Type", "Labels", "Meaning"), rows)


TABLES: dict[Path, dict[str, Callable[[], str]]] = {
    README: {"settings": settings_table, "limits": limits_table, "error reasons": reasons_table},
    OPERATIONS: {"metrics": metrics_table},
}


def fill(text: str, document: Path = README) -> str:
    """Returns the text of a document with every table renewed.

    Raises:
        ValueError: When a table's markers are missing.
    """
    for name, table in TABLES[document].items():
        begin, end = f"<!-- {name}: made by `make docs` -->\n", f"<!-- end of {name} -->"
        between = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
        text, count = between.subn(table().replace("\\", r"\\"), text)
        if count != 1:
            raise ValueError(f"the markers of the table {name!r} are there {count} times")
    return text


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "user data folder"
    if field.default is None:
        return "unset"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    return f"`{field.default:g}`" if isinstance(field.default, float) else f"`{field.default}`"


def _values(field: FieldInfo) -> str:
    annotation: Any = field.annotation
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if annotation is bool:
        return "`true`, `false`"
    return _range(field) if annotation in {int, float, int | None, float | None} else ""


def _range(field: FieldInfo) -> str:
    least, most = "", ""
    for constraint in field.metadata:
        match constraint:
            case annotated_types.Ge(ge=bound):
                least = f"{bound:,}"
            case annotated_types.Gt(gt=bound):
                least = f"over {bound:,}"
            case annotated_types.Le(le=bound):
                most = f"{bound:,}"
    return f"{least} to {most}" if most else f"{least} or more"


def _quantity(name: str, value: int | timedelta) -> str:
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
        days, hours = seconds / 86_400, seconds / 3_600
        return f"{days:g} days" if days > 1 else f"{hours:g} hours" if hours > 1 else f"{seconds:g} s"
    if name.endswith("_bytes"):
        return f"{value / MIB:g} MiB" if value >= MIB else f"{value / KIB:g} KiB"
    return f"{value:,}"


def _contract() -> FileDescriptorProto:
    files = FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file
    return next(file for file in files if file.name == CONTRACT)


def _comments() -> dict[tuple[int, ...], str]:
    """Returns the contract's leading comments, each as one line, by their path (see descriptor.proto)."""
    return {
        tuple(location.path): " ".join(location.leading_comments.split())
        for location in _contract().source_code_info.location
        if location.leading_comments
    }


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


def main() -> None:
    """Parses the command line and writes or checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a table is stale")
    check = parser.parse_args().check
    for document in TABLES:
        text = document.read_text(encoding="utf-8")
        fresh = fill(text, document)
        if check and fresh != text:
            sys.exit(f"{document.relative_to(ROOT)} is stale; run `make docs` and commit the result")
        if not check:
            document.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
