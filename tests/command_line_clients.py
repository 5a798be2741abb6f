"""`buf curl` and `grpcurl`, as operators type them: JSON in, JSON out, with the contract that the server reflects."""

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from google.protobuf import json_format
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo

BUF = str(Path(sys.executable).with_name("buf"))
SERVICE = "memory_service.v1.MemoryService"
INSTALL_GRPCURL = "go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What an operator reads when a call fails."""

    code: str
    message: str
    reason: str
    """ErrorInfo.reason."""
    fields: frozenset[str]
    """The fields that BadRequest names."""


class CommandLineClient(Protocol):
    """A client for the terminal that somebody else wrote."""

    def call(self, rpc: str, request: dict[str, Any]) -> dict[str, Any]:
        """Returns the reply; fails the test where there is none."""

    def refusal(self, rpc: str, request: dict[str, Any]) -> Refusal:
        """Returns how the call fails; fails the test where it does not."""

    def services(self) -> list[str]:
        """Returns the services that the server lists."""

    def methods(self) -> list[str]:
        """Returns the RPCs of MemoryService that the server lists."""

    def field_mask(self, *paths: str) -> Any:
        """Returns how a field mask is written."""


class BufCurl:
    """`buf curl` without TLS."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}"

    def call(self, rpc: str, request: dict[str, Any]) -> dict[str, Any]:
        """Returns the reply."""
        return reply_of(self._curl("-d", json.dumps(request), f"{self._url}/{SERVICE}/{rpc}"))

    def refusal(self, rpc: str, request: dict[str, Any]) -> Refusal:
        """Returns how the call fails: details are packed messages in base64."""
        done = self._curl("-d", json.dumps(request), f"{self._url}/{SERVICE}/{rpc}")
        error = json.loads(error_of(done))
        info, bad_request = ErrorInfo(), BadRequest()
        for detail in error.get("details", []):
            for message in (info, bad_request):
                if detail["type"] == message.DESCRIPTOR.full_name:
                    message.ParseFromString(base64.b64decode(detail["value"] + "=="))
        return refusal_of(error["code"].upper(), error["message"], info, bad_request)

    def services(self) -> list[str]:
        """Returns the services that the server lists."""
        return output_of(self._curl("--list-services", self._url)).split()

    def methods(self) -> list[str]:
        """Returns the RPCs of MemoryService that the server lists."""
        methods = output_of(self._curl("--list-methods", self._url)).split()
        return [method.partition("/")[2] for method in methods if method.startswith(f"{SERVICE}/")]

    def field_mask(self, *paths: str) -> str:
        """Returns a field mask as protobuf writes it in JSON."""
        return FieldMask(paths=paths).ToJsonString()

    @staticmethod
    def _curl(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return run(BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments)


class Grpcurl:
    """`grpcurl`, without TLS unless `options` say otherwise."""

    def __init__(self, address: str, options: Sequence[str] = ("-plaintext",)) -> None:
        self._address = address
        self._options = options
        self._program = program_of_grpcurl()

    def call(self, rpc: str, request: dict[str, Any]) -> dict[str, Any]:
        """Returns the reply."""
        return reply_of(self._curl("-d", json.dumps(request), self._address, f"{SERVICE}/{rpc}"))

    def refusal(self, rpc: str, request: dict[str, Any]) -> Refusal:
        """Returns how the call fails: details are JSON, where the server tells what their types are."""
        done = self._curl("-format-error", "-d", json.dumps(request), self._address, f"{SERVICE}/{rpc}")
        error = json.loads(error_of(done))
        info, bad_request = ErrorInfo(), BadRequest()
        for detail in error.get("details", []):
            kind = detail.pop("@type").rpartition("/")[2]
            for message in (info, bad_request):
                if kind == message.DESCRIPTOR.full_name:
                    json_format.ParseDict(detail, message)
        return refusal_of(Code.Name(error["code"]), error["message"], info, bad_request)

    def complaint(self, rpc: str, request: dict[str, Any]) -> str:
        """Returns what is printed for people when the call fails."""
        return error_of(self._curl("-d", json.dumps(request), self._address, f"{SERVICE}/{rpc}"))

    def services(self) -> list[str]:
        """Returns the services that the server lists."""
        return output_of(self._curl(self._address, "list")).split()

    def methods(self) -> list[str]:
        """Returns the RPCs of MemoryService that the server lists."""
        methods = output_of(self._curl(self._address, "list", SERVICE)).split()
        return [method.removeprefix(f"{SERVICE}.") for method in methods]

    def field_mask(self, *paths: str) -> dict[str, list[str]]:
        """Returns a field mask as grpcurl reads it: as any other message."""
        return {"paths": list(paths)}

    def description(self, symbol: str) -> str:
        """Returns what the server says about a message, service or method."""
        return output_of(self._curl(self._address, "describe", symbol))

    def _curl(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return run(self._program, *self._options, *arguments)


def program_of_grpcurl() -> str:
    """Returns where grpcurl is; skips the test where it is not installed."""
    program = shutil.which("grpcurl")
    if program is None:
        pytest.skip(f"grpcurl is not on the PATH; to have it: {INSTALL_GRPCURL}")
    return program


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command in a folder without any schema: what it knows, it asks the server."""
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd="/")


def output_of(done: "subprocess.CompletedProcess[str]") -> str:
    """Returns what a command printed; fails the test where it failed."""
    assert done.returncode == 0, done.stderr
    return done.stdout


def error_of(done: "subprocess.CompletedProcess[str]") -> str:
    """Returns what a command complained about; fails the test where it did not fail."""
    assert done.returncode != 0, done.stdout
    return done.stderr


def reply_of(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """Returns the reply that a command printed."""
    reply: dict[str, Any] = json.loads(output_of(done))
    return reply


def refusal_of(code: str, message: str, info: Message, bad_request: Message) -> Refusal:
    """Returns a refusal from its parts."""
    assert isinstance(info, ErrorInfo)
    assert isinstance(bad_request, BadRequest)
    fields = frozenset(violation.field for violation in bad_request.field_violations)
    return Refusal(code=code, message=message, reason=info.reason, fields=fields)
