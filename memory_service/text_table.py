"""Tables and quantities for a terminal: columns of even width, bytes and times as people read them."""

from collections.abc import Sequence

KIB = 1_024
UNITS = ("KB", "MB", "GB", "TB")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[str] = frozenset()) -> str:
    """Returns the rows below their headings; the columns named in `right` are aligned there."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    aligns = [str.rjust if heading in right else str.ljust for heading in headings]
    return "\n".join(
        "  ".join(align(cell, width) for cell, width, align in zip(line, widths, aligns, strict=True)).rstrip()
        for line in lines
    )


def size(count: int) -> str:
    """Returns bytes in the unit that leaves one to four digits before the point."""
    if count < KIB:
        return f"{count} B"
    value, unit = float(count), ""
    for unit in UNITS:  # noqa: B007 - the last one reached is used below
        value /= KIB
        if value < KIB:
            break
    return f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """Returns a time that has passed in its largest unit, rounded down."""
    for unit, length_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length_s:
            return f"{int(seconds // length_s):,} {unit}"
    return f"{max(0, int(seconds))} s"


def minutes(seconds: float) -> str:
    """Returns a time to come as minutes and seconds: 0:07, 12:30."""
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d}"


def printable(text: str) -> str:
    """Returns text as it is where a terminal can show it, quoted and escaped otherwise."""
    return text if text.isprintable() and text.strip() == text else repr(text)
