"""Keeps what stands between markers on a page of the documentation as it is generated."""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def filled(text: str, sections: Mapping[str, Sequence[str]]) -> str:
    """Returns `text` with the lines of each section between its markers.

    Raises:
        ValueError: When a section's markers are missing.
    """
    for name, lines in sections.items():
        inner = "\n" + "".join(f"{line}\n" for line in lines) + "\n"
        begin, end = f"<!-- {name}: made by `make docs` -->\n", f"<!-- end of {name} -->"
        between = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
        text, count = between.subn(inner.replace("\\", r"\\"), text)
        if count != 1:
            raise ValueError(f"the markers of the section {name!r} are there {count} times")
    return text


def write_or_check(page: Path, fill: Callable[[str], str], *, about: str) -> None:
    """Parses the command line and writes the page anew or, with --check, exits with a message when it is stale."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when the page is stale")
    check = parser.parse_args().check
    text = page.read_text(encoding="utf-8")
    fresh = fill(text)
    if check and fresh != text:
        sys.exit(f"{page.parent.name}/{page.name} is stale; run `make docs` and commit the result")
    if not check:
        page.write_text(fresh, encoding="utf-8")
