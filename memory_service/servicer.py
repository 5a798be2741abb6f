"""MemoryService itself: hands each RPC to the current stack, as a call that ends with the caller's."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc

from db.cancellation import Call
from db.errors import DatabaseUnavailable, EmbeddingSpaceChanged
from db.reembedding import Progress
from db.stored_state import StoredState
from memory_service.access.call_threads import CallThreads
from memory_service.executors import run_on
from memory_service.import_streams import ImportStreams
from memory_service.limits import Limits
from memory_service.messages.ranking_request import RankingDefaults
from memory_service.rpc_call import call_of
from memory_service.server_info import DatabaseState, ServerFacts, Serving, server_info
from memory_service.stack import Stack
from memory_service.succession import Succession
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceServicer

Reply = TypeVar("Reply")


class MemoryServicer(MemoryServiceServicer):
    """Serves the RPCs. Behaviours raise; the interceptor makes statuses of what they raise."""

    def __init__(
        self,
        *,
        stacks: Succession,
        imports: ImportStreams,
        facts: ServerFacts,
        stored_state: Callable[[Call], StoredState],
        backfill: Callable[[], Progress | None],
        limits: Limits,
        ranking: RankingDefaults,
    ) -> None:
        self._stacks = stacks
        self._imports = imports
        # gRPC reads from the method itself which threads it works on.
        self.ImportVectors = run_on(imports.threads, self.ImportVectors)  # type: ignore[method-assign]  # see above
        self._facts = facts
        self._stored_state = stored_state
        self._backfill = backfill
        self._limits = limits
        self._ranking = ranking

    @property
    def import_threads(self) -> CallThreads:
        """The threads that imports work on."""
        return self._imports.threads

    def end_streams(self) -> None:
        """Ends imports after the chunk they are working on; those to come at once."""
        self._imports.shut_down()

    def _run(self, context: grpc.ServicerContext, behave: Callable[[Stack, Call], Reply]) -> Reply:
        """Runs a call, once more on the next stack where the database has moved to another embedding space.

        The first attempt has then changed nothing: it got no connection, or none that lived to commit.
        """
        with self._stacks.lend() as stack:
            call = call_of(context, stack.new_call)
            try:
                return behave(stack, call)
            except EmbeddingSpaceChanged:
                self._stacks.follow(stack, timeout_s=call.remaining_s())
        with self._stacks.lend() as stack:
            return behave(stack, call_of(context, stack.new_call))

    def InsertVector(self, request: pb.InsertVectorRequest, context: grpc.ServicerContext) -> pb.InsertVectorResponse:  # noqa: N802
        """See the contract."""
        return self._run(context, lambda stack, call: stack.writing.insert(request, call))

    def BatchInsertVectors(  # noqa: N802
        self, request: pb.BatchInsertVectorsRequest, context: grpc.ServicerContext
    ) -> pb.BatchInsertVectorsResponse:
        """See the contract."""
        return self._run(context, lambda stack, call: stack.writing.insert_batch(request, call))

    def ImportVectors(  # noqa: N802
        self, request_iterator: Iterator[pb.ImportVectorsRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ImportVectorsResponse]:
        """See the contract."""
        with self._stacks.lend() as stack, self._imports.admit(stack.importing.read(request_iterator)) as chunks:
            yield from stack.importing.store(chunks, call_of(context, stack.new_call))

    def GetVector(self, request: pb.GetVectorRequest, context: grpc.ServicerContext) -> pb.GetVectorResponse:  # noqa: N802
        """See the contract."""
        return self._run(context, lambda stack, call: stack.recall.get(request, call))

    def UpdateVector(self, request: pb.UpdateVectorRequest, context: grpc.ServicerContext) -> pb.UpdateVectorResponse:  # noqa: N802
        """See the contract."""
        return self._run(context, lambda stack, call: stack.writing.update(request, call))

    def DeleteVector(self, request: pb.DeleteVectorRequest, context: grpc.ServicerContext) -> pb.DeleteVectorResponse:  # noqa: N802
        """See the contract."""
        return self._run(context, lambda stack, call: stack.writing.delete(request, call))

    def RestoreVector(  # noqa: N802
        self, request: pb.RestoreVectorRequest, context: grpc.ServicerContext
    ) -> pb.RestoreVectorResponse:
        """See the contract."""
        return self._run(context, lambda stack, call: stack.writing.restore(request, call))

    def SearchSimilar(  # noqa: N802
        self, request: pb.SearchSimilarRequest, context: grpc.ServicerContext
    ) -> pb.SearchSimilarResponse:
        """See the contract."""
        return self._run(context, lambda stack, call: stack.searching.search(request, call))

    def BatchSearchSimilar(  # noqa: N802
        self, request: pb.BatchSearchSimilarRequest, context: grpc.ServicerContext
    ) -> pb.BatchSearchSimilarResponse:
        """See the contract."""
        return self._run(context, lambda stack, call: stack.searching.search_batch(request, call))

    def SearchAllUsers(  # noqa: N802
        self, request: pb.SearchAllUsersRequest, context: grpc.ServicerContext
    ) -> pb.SearchAllUsersResponse:
        """See the contract."""
        return self._run(context, lambda stack, call: stack.global_recall.search(request, call))

    def GetRecent(self, request: pb.GetRecentRequest, context: grpc.ServicerContext) -> pb.GetRecentResponse:  # noqa: N802
        """See the contract."""
        return self._run(context, lambda stack, call: stack.recall.recent(request, call))

    def GetStats(self, request: pb.GetStatsRequest, context: grpc.ServicerContext) -> pb.GetStatsResponse:  # noqa: N802
        """See the contract."""
        return self._run(context, lambda stack, call: stack.recall.stats(request, call))

    def GetServerInfo(  # noqa: N802
        self,
        request: pb.GetServerInfoRequest,  # noqa: ARG002 - it is empty
        context: grpc.ServicerContext,
    ) -> pb.GetServerInfoResponse:
        """See the contract."""
        return self._run(context, self._server_info)

    def _server_info(self, stack: Stack, call: Call) -> pb.GetServerInfoResponse:
        try:
            stored = self._stored_state(call)
        except DatabaseUnavailable:  # all else is known without it, and worth knowing just then
            state = None
        else:
            state = DatabaseState(stored, None if stored.move is None else self._backfill())
        return server_info(self._facts, Serving(stack.embedder, stack.space), self._limits, self._ranking, state)
