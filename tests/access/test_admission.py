"""Admission: calls, their streams and reflection, with and without credentials."""

from typing import Any

import grpc
import pytest
import structlog

from memory_service.access import admission as of_admission
from memory_service.access.admission import OPEN, Admission
from memory_service.access.errors import CredentialsInvalid, RoleInsufficient, UserNotAllowed
from memory_service.access.principal import ANONYMOUS, DEVELOPER, NOBODY, Principal, Role, UserScope
from memory_service.v1 import memory_pb2 as pb

IMPORT = "/memory_service.v1.MemoryService/ImportVectors"
ERASE = "/memory_service.v1.AdminService/EraseUser"
ADA = Principal(subject="key:1", role=Role.WRITER, scope=UserScope(users=frozenset({"ada"})))

CONTEXT: Any = None


class Authentication:
    """Lets in until it is told otherwise, and counts."""

    def __init__(self) -> None:
        self.count = 0
        self.revoked = False

    def __call__(self, context: grpc.ServicerContext) -> Principal:
        """Returns ada."""
        del context
        self.count += 1
        if self.revoked:
            raise CredentialsInvalid("revoked", subject="key:1")
        return ADA


def chunk(user_id: str = "ada") -> pb.ImportVectorsRequest:
    return pb.ImportVectorsRequest(user_id=user_id)


def test_a_caller_is_asked_once_and_held_to_its_users() -> None:
    authentication = Authentication()
    call = Admission(authenticator=authentication).of(IMPORT, CONTEXT)
    assert call.principal == NOBODY
    call.begin()
    for _ in range(3):
        call.check(chunk())
    assert (call.principal, authentication.count) == (ADA, 1)
    with pytest.raises(UserNotAllowed):
        call.check(chunk("bob"))


def test_a_stream_ends_when_its_key_is_revoked(monkeypatch: pytest.MonkeyPatch) -> None:
    authentication = Authentication()
    call = Admission(authenticator=authentication).of(IMPORT, CONTEXT)
    call.begin()
    call.check(chunk())
    authentication.revoked = True
    call.check(chunk())
    monkeypatch.setattr(of_admission, "IDENTIFY_EVERY_S", -1.0)
    with pytest.raises(CredentialsInvalid):
        call.check(chunk())


def test_without_authentication_nobody_is_an_administrator_but_in_development() -> None:
    with pytest.raises(RoleInsufficient):
        Admission(anonymous=ANONYMOUS).of(ERASE, CONTEXT).begin()
    Admission(anonymous=ANONYMOUS).of(IMPORT, CONTEXT).begin()
    Admission(anonymous=DEVELOPER).of(ERASE, CONTEXT).begin()
    OPEN.of("/memory_service.v1.Test/Anything", CONTEXT).begin()


def test_the_log_knows_the_caller_and_why_another_was_refused() -> None:
    authentication = Authentication()
    admission = Admission(authenticator=authentication)
    with structlog.contextvars.bound_contextvars(subject=None, refusal=None):
        admission.identify(CONTEXT)
        assert structlog.contextvars.get_contextvars()["subject"] == "key:1"
        authentication.revoked = True
        with pytest.raises(CredentialsInvalid):
            admission.identify(CONTEXT)
        assert structlog.contextvars.get_contextvars()["refusal"] == "revoked"
