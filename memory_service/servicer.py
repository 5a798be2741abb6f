"""MemoryService itself: hands each RPC to writing, searching or recall, as a call that ends with the caller's."""

from collections.abc import Callable, Iterator

import grpc

from db.cancellation import Call
from db.errors import DatabaseUnavailable
from db.stored_state import StoredState
from memory_service.executors import run_on
from memory_service.global_recall import GlobalRecall
from memory_service.import_streams import ImportStreams
from memory_service.importing import Importing
from memory_service.limits import Limits
from memory_service.ranking_request import RankingDefaults
from memory_service.recall import Recall
from memory_service.searching import Searching
from memory_service.server_info import ServerFacts, server_info
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceServicer
from memory_service.writing import Writing

# gRPC reports a missing deadline as some 292 years.
NO_DEADLINE_S = 1e8

NewCall = Callable[[float | None], Call]
"""Makes a call that may run for so many seconds."""


class MemoryServicer(MemoryServiceServicer):
    """Serves the RPCs. Behaviours raise; the interceptor makes statuses of what they raise."""

    def __init__(
        self,
        *,
        writing: Writing,
        importing: Importing,
        imports: ImportStreams,
        searching: Searching,
        recall: Recall,
        global_recall: GlobalRecall,
        facts: ServerFacts,
        stored_state: Callable[[Call], StoredState],
        limits: Limits,
        ranking: RankingDefaults,
        new_call: NewCall,
    ) -> None:
        self._writing = writing
        self._importing = importing
        self._imports = imports
        # gRPC reads from the method itself which threads it works on.
        self.ImportVectors = run_on(imports.threads, self.ImportVectors)  # type: ignore[method-assign]  # see above
        self._searching = searching
        self._recall = recall
        self._global_recall = global_recall
        self._facts = facts
        self._stored_state = stored_state
        self._limits = limits
        self._ranking = ranking
        self._new_call = new_call

    def end_streams(self) -> None:
        """Ends imports after the chunk they are working on; those to come at once."""
        self._imports.shut_down()

    def _call(self, context: grpc.ServicerContext) -> Call:
        remaining_s = context.time_remaining()
        call = self._new_call(remaining_s if remaining_s < NO_DEADLINE_S else None)
        # Runs when the RPC ends for whatever reason; what still runs for it then has lost its reader.
        if not context.add_callback(call.cancel):
            call.cancel()
        return call

    def InsertVector(self, request: pb.InsertVectorRequest, context: grpc.ServicerContext) -> pb.InsertVectorResponse:  # noqa: N802
        """See the contract."""
        return self._writing.insert(request, self._call(context))

    def BatchInsertVectors(  # noqa: N802
        self, request: pb.BatchInsertVectorsRequest, context: grpc.ServicerContext
    ) -> pb.BatchInsertVectorsResponse:
        """See the contract."""
        return self._writing.insert_batch(request, self._call(context))

    def ImportVectors(  # noqa: N802
        self, request_iterator: Iterator[pb.ImportVectorsRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ImportVectorsResponse]:
        """See the contract."""
        with self._imports.admit(self._importing.read(request_iterator)) as chunks:
            yield from self._importing.store(chunks, self._call(context))

    def GetVector(self, request: pb.GetVectorRequest, context: grpc.ServicerContext) -> pb.GetVectorResponse:  # noqa: N802
        """See the contract."""
        return self._recall.get(request, self._call(context))

    def UpdateVector(self, request: pb.UpdateVectorRequest, context: grpc.ServicerContext) -> pb.UpdateVectorResponse:  # noqa: N802
        """See the contract."""
        return self._writing.update(request, self._call(context))

    def DeleteVector(self, request: pb.DeleteVectorRequest, context: grpc.ServicerContext) -> pb.DeleteVectorResponse:  # noqa: N802
        """See the contract."""
        return self._writing.delete(request, self._call(context))

    def RestoreVector(  # noqa: N802
        self, request: pb.RestoreVectorRequest, context: grpc.ServicerContext
    ) -> pb.RestoreVectorResponse:
        """See the contract."""
        return self._writing.restore(request, self._call(context))

    def SearchSimilar(  # noqa: N802
        self, request: pb.SearchSimilarRequest, context: grpc.ServicerContext
    ) -> pb.SearchSimilarResponse:
        """See the contract."""
        return self._searching.search(request, self._call(context))

    def BatchSearchSimilar(  # noqa: N802
        self, request: pb.BatchSearchSimilarRequest, context: grpc.ServicerContext
    ) -> pb.BatchSearchSimilarResponse:
        """See the contract."""
        return self._searching.search_batch(request, self._call(context))

    def SearchAllUsers(  # noqa: N802
        self, request: pb.SearchAllUsersRequest, context: grpc.ServicerContext
    ) -> pb.SearchAllUsersResponse:
        """See the contract."""
        return self._global_recall.search(request, self._call(context))

    def GetRecent(self, request: pb.GetRecentRequest, context: grpc.ServicerContext) -> pb.GetRecentResponse:  # noqa: N802
        """See the contract."""
        return self._recall.recent(request, self._call(context))

    def GetStats(self, request: pb.GetStatsRequest, context: grpc.ServicerContext) -> pb.GetStatsResponse:  # noqa: N802
        """See the contract."""
        return self._recall.stats(request, self._call(context))

    def GetServerInfo(  # noqa: N802
        self,
        request: pb.GetServerInfoRequest,  # noqa: ARG002 - it is empty
        context: grpc.ServicerContext,
    ) -> pb.GetServerInfoResponse:
        """See the contract."""
        try:
            state = self._stored_state(self._call(context))
        except DatabaseUnavailable:  # all else is known without it, and worth knowing just then
            state = None
        return server_info(self._facts, self._limits, self._ranking, state)
