"""Sending bytes to a running service, and judging how it answers."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc

from tests.api.calls import failure_of
from tests.fuzz.services import Rpc

# No input that fits a request takes a service that long, unless it hangs.
DEADLINE_S = 20.0
# No more than the service has threads and connections for: calls that are turned away find nothing.
AT_ONCE, FEW_AT_ONCE = 4, 2

# How a service may answer whatever it is sent.
ALLOWED = {
    *(grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS),
    *(grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED),
    *(grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """An input that the service did not stand up to."""

    rpc: str
    """Its path."""
    data: bytes
    what: str

    def save(self, folder: Path) -> Path:
        """Writes the input to a file, in hex, and returns its path."""
        folder.mkdir(exist_ok=True)
        name = self.rpc.rpartition("/")[2]
        path = folder / f"{name}-{hashlib.sha256(self.data).hexdigest()[:12]}.hex"
        path.write_text(f"{self.rpc}\n{self.data.hex()}\n")
        return path


def load(path: Path) -> tuple[str, bytes]:
    """Returns the RPC's path and the input of a file that `Finding.save` wrote."""
    rpc, data, *_ = path.read_text().splitlines()
    return rpc, bytes.fromhex(data)


@dataclass(slots=True)
class Target:
    """A service, asked over one channel, and what came of it."""

    channel: grpc.Channel
    answers: dict[str, Counter[str]] = field(default_factory=dict)
    """How often each RPC was answered how: "OK", or the name of a status code."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        """How many inputs were sent."""
        return sum(counter.total() for counter in self.answers.values())

    def send(self, rpc: Rpc, inputs: Sequence[bytes]) -> None:
        """Sends inputs, several at once, and judges the answers."""
        at_once = FEW_AT_ONCE if rpc.streams or rpc.service.endswith(".AdminService") else AT_ONCE
        for start in range(0, len(inputs), at_once):
            together = inputs[start : start + at_once]
            calls = [self._begin(rpc, data) for data in together]
            for data, call in zip(together, calls, strict=True):
                self._judge(rpc, data, call)

    def _begin(self, rpc: Rpc, data: bytes) -> Any:
        if rpc.streams:
            stream: Any = self.channel.stream_stream(rpc.path)
            return stream(iter([data]), timeout=DEADLINE_S)
        unary: Any = self.channel.unary_unary(rpc.path)
        return unary.future(data, timeout=DEADLINE_S)

    def _judge(self, rpc: Rpc, data: bytes, call: Any) -> None:
        answer = "OK"
        try:
            for reply in call if rpc.streams else [call.result()]:
                rpc.reply.FromString(reply)
        except grpc.RpcError as error:
            code = cast("grpc.Call", error).code()
            answer = code.name
            if code not in ALLOWED:
                self.findings.append(Finding(rpc.path, data, f"{code.name}: {cast('grpc.Call', error).details()}"))
            else:
                self._judge_details(rpc, data, error)
        self.answers.setdefault(rpc.name, Counter())[answer] += 1

    def _judge_details(self, rpc: Rpc, data: bytes, error: grpc.RpcError) -> None:
        try:
            failure_of(error)
        except AssertionError as broken:
            self.findings.append(Finding(rpc.path, data, f"the details of the error: {broken}"))
