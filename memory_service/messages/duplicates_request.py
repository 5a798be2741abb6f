"""Reading what a request says about duplicates."""

import math

from db.duplicate_decisions import DuplicatePolicy
from db.duplicates import Duplicates
from memory_service.messages.fields import FieldReader
from memory_service.v1 import memory_pb2 as pb

POLICIES: dict[pb.DuplicatePolicy.ValueType, DuplicatePolicy | None] = {
    pb.DUPLICATE_POLICY_UNSPECIFIED: None,
    pb.DUPLICATE_POLICY_ALLOW: None,
    pb.DUPLICATE_POLICY_SKIP: DuplicatePolicy.SKIP,
    pb.DUPLICATE_POLICY_REINFORCE: DuplicatePolicy.REINFORCE,
    pb.DUPLICATE_POLICY_SUPERSEDE: DuplicatePolicy.SUPERSEDE,
}

Request = pb.InsertVectorRequest | pb.BatchInsertVectorsRequest | pb.ImportVectorsRequest


def read(fields: FieldReader, request: Request) -> Duplicates | None:
    """Reads the request's `duplicates`, noting violations; None where they are allowed."""
    message = request.duplicates
    policy = fields.choice("duplicates.policy", message.policy, POLICIES)
    min_similarity = message.min_similarity if message.HasField("min_similarity") else None
    if min_similarity is not None:
        _check_similarity(fields, min_similarity)
        if message.policy in {pb.DUPLICATE_POLICY_UNSPECIFIED, pb.DUPLICATE_POLICY_ALLOW}:
            fields.violations.add("duplicates.min_similarity", "needs a policy other than ALLOW")
        if request.embed_async:
            fields.violations.add(
                "duplicates.min_similarity", "is set together with embed_async: there is no embedding to compare yet"
            )
    return None if policy is None else Duplicates(policy=policy, min_similarity=min_similarity)


def _check_similarity(fields: FieldReader, value: float) -> None:
    if math.isnan(value):
        fields.violations.add("duplicates.min_similarity", "is NaN, expected a number")
    elif not 0.0 < value <= 1.0:
        fields.violations.add("duplicates.min_similarity", f"is {value:g}, expected above 0 and at most 1")
