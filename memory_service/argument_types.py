"""What arguments of commands may be: numbers, texts, times. Each refusal says what is expected."""

import argparse
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def count(what: str) -> Callable[[str], int]:
    """Returns what reads a number of them, 1 or more."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) == 0:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of {what}, 1 or more")
        return int(text)

    return parse


def number(least: int, most: int) -> Callable[[str], int]:
    """Returns what reads a number within these bounds."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least:,} to {most:,}")
        return int(text)

    return parse


def text(max_characters: int) -> Callable[[str], str]:
    """Returns what reads a text that is not empty."""

    def parse(given: str) -> str:
        if not 0 < len(given) <= max_characters:
            raise argparse.ArgumentTypeError(f"has to have 1 to {max_characters} characters")
        try:
            given.encode()
        except UnicodeEncodeError:  # what Python makes of other bytes of the command line
            raise argparse.ArgumentTypeError("is not in UTF-8") from None
        return given

    return parse


def duration(given: str) -> timedelta:
    """Reads how long: 30m, 48h, 7d."""
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", given)
    if match is None:
        raise argparse.ArgumentTypeError(f"{given!r} is no time such as 30m, 48h or 7d")
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def end(given: str) -> timedelta | datetime:
    """Reads when something ends: so long from now, or a date or time to come, in UTC unless it says otherwise."""
    if given and given[-1] in _SECONDS:
        return duration(given)
    try:
        at = datetime.fromisoformat(given)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{given!r} is neither a time such as 90d nor a date such as 2030-01-31"
        ) from None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    if at <= datetime.now(UTC):
        raise argparse.ArgumentTypeError(f"{given} is over")
    return at
