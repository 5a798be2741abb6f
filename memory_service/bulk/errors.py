"""What can go wrong with a transfer, in words for whoever started it."""

from pathlib import Path


class TransferError(Exception):
    """A transfer failed; the message says why and, where there is something to do, what."""


class BadRecord(TransferError):
    """A record of a file cannot be read as a memory."""

    def __init__(self, place: str, description: str) -> None:
        super().__init__(f"{place}: {description}")


class UnreadableFile(TransferError):
    """A file as a whole is not of its format, or cannot be opened."""

    def __init__(self, path: Path | str, description: str) -> None:
        super().__init__(f"{path}: {description}")
