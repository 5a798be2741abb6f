"""Which fields an update changes (AIP-134)."""

from memory_service.v1 import memory_pb2 as pb

UPDATABLE = ("content", "summary", "metadata", "embedding", "importance", "conversation_id", "language")


def paths_of(request: pb.UpdateVectorRequest) -> set[str]:
    """Returns the fields that the mask names or, where there is no mask, those that are set."""
    if not request.HasField("update_mask"):
        return {descriptor.name for descriptor, _ in request.memory.ListFields()} & set(UPDATABLE)
    named = set(request.update_mask.paths)
    return set(UPDATABLE) if "*" in named else named & set(UPDATABLE)


def brings_embedding(request: pb.UpdateVectorRequest) -> bool:
    """Whether the update replaces the embedding by one of the caller's."""
    return request.memory.HasField("embedding") and "embedding" in paths_of(request)
