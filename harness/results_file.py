"""Reading and writing a file of results: JSON, its numbers rounded to what was measured, never half written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DIGITS = 5
"""Significant ones; a measurement has fewer."""

Json = dict[str, Any]


def read(path: Path) -> Json | None:
    """Returns what a file holds, None where there is none."""
    if not path.is_file():
        return None
    data: Json = json.loads(path.read_text(encoding="utf-8"))
    return data


def write(path: Path, data: Json) -> None:
    """Puts `data` in the place of what a file holds; makes its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def rounded(value: Any) -> Any:
    """Returns the value as JSON will hold it, floats with five significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {str(name): rounded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return value
