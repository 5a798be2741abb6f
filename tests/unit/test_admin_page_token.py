"""Page tokens of AdminService: they lead where they were made for; anything else is refused, however it was made."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from db.audit import AuditPosition
from memory_service import admin_page_token
from memory_service.messages.page_token import InvalidPageToken
from memory_service.v1 import admin_pb2 as pb

USERS, KEYS, AUDIT = pb.ListUsersRequest(), pb.ListApiKeysRequest(), pb.QueryAuditLogRequest(method="EraseUser")
POSITION = AuditPosition(datetime(2026, 5, 4, 3, 2, 1, 987_654, tzinfo=UTC), UUID(int=7))

audit_positions = st.builds(AuditPosition, st.datetimes(timezones=st.just(UTC)), st.uuids())


@given(st.text())
def test_positions_come_back(position: str) -> None:
    assert admin_page_token.decode(admin_page_token.encode(position, USERS), USERS) == position


@given(audit_positions)
def test_positions_in_the_audit_log_come_back(position: AuditPosition) -> None:
    assert admin_page_token.decode_audit(admin_page_token.encode_audit(position, AUDIT), AUDIT) == position


@pytest.mark.parametrize("scope", [KEYS, AUDIT, pb.QueryAuditLogRequest()], ids=["keys", "one method", "all"])
def test_a_token_is_of_its_own_call(scope: Message) -> None:
    token = admin_page_token.encode("ada", USERS)
    with pytest.raises(InvalidPageToken, match="belongs to a request with other arguments"):
        admin_page_token.decode(token, scope)


def test_a_token_of_the_audit_log_is_of_its_own_arguments() -> None:
    token = admin_page_token.encode_audit(POSITION, AUDIT)
    with pytest.raises(InvalidPageToken, match="other arguments"):
        admin_page_token.decode_audit(token, pb.QueryAuditLogRequest(method="ListUsers"))


@given(st.text())
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidPageToken):
        admin_page_token.decode(token, USERS)


@given(st.binary())
def test_a_token_made_by_hand_is_read_or_refused(position: bytes) -> None:
    token = admin_page_token._encode(position, AUDIT)  # noqa: SLF001 - as whoever knows how they are made
    for decode in (admin_page_token.decode, admin_page_token.decode_audit):
        try:
            decode(token, AUDIT)
        except InvalidPageToken as error:
            assert str(error) == "is not a page token of this service"  # noqa: PT017 - it may as well be good


@pytest.mark.parametrize("microseconds", [2**63 - 1, -(2**63)])
def test_a_time_that_is_none_is_refused(microseconds: int) -> None:
    position = microseconds.to_bytes(8, signed=True) + bytes(16)
    token = admin_page_token._encode(position, AUDIT)  # noqa: SLF001 - likewise
    with pytest.raises(InvalidPageToken):
        admin_page_token.decode_audit(token, AUDIT)
