"""A clock for single processes that can be set while they run: see stepped_clock.c."""

import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from harness.attempt import NotPossible

SOURCE = Path(__file__).with_suffix(".c")


class SteppedClock:
    """Makes the library that processes load, and says how far their clock is from the machine's."""

    def __init__(self) -> None:
        """Compiles the library.

        Raises:
            NotPossible: Where there is no C compiler.
        """
        if (compiler := shutil.which("cc")) is None:
            raise NotPossible("stepping the clock of a process takes a C compiler")
        self._folder = Path(tempfile.mkdtemp(prefix="memory-service-faults-"))
        # PostgreSQL's account has to read them, too.
        self._folder.chmod(0o755)
        self._library = self._folder / "stepped_clock.so"
        self._file = self._folder / "seconds"
        self._seconds = 0.0
        self._write()
        command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(self._library), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a process that is to have this clock; its children inherit it."""
        return {"LD_PRELOAD": str(self._library), "STEPPED_CLOCK": str(self._file)}

    def step(self, seconds: float) -> None:
        """Sets the clock ahead, or back."""
        self._seconds += seconds
        self._write()

    def _write(self) -> None:
        # In place: processes have the file mapped.
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("=d", self._seconds))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder)
