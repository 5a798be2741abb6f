"""The embedder that asks OpenAI, or any server that speaks the protocol of its embeddings endpoint."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openai
import structlog
from numpy.typing import NDArray

from memory_service.embedding.batches import REQUEST_BYTES, batches
from memory_service.embedding.blank import refuse_blank
from memory_service.embedding.cancellation import Cancellation
from memory_service.embedding.errors import (
    EmbedderMisconfigured,
    EmbedderUnavailable,
    RequestGivenUp,
    TextNotEmbeddable,
)
from memory_service.embedding.loop_thread import LoopClosed, LoopThread, Stopped
from memory_service.embedding.openai_refusals import Failed, Refused, explain
from memory_service.embedding.openai_replies import read_vectors

logger = structlog.get_logger(__name__)

DEFAULT_BASE_URL = "https://api.openai.com/v1"

# A call may be as large as 28 requests: too many for one after the other.
_CONCURRENT_REQUESTS = 4
_FIRST_BACKOFF_S = 0.25
_LONGEST_BACKOFF_S = 8.0
# What callers are told to wait for a provider that gives no time of its own.
_RETRY_AFTER_S = 1.0
# What no model can object to: tells a refused text from refused settings.
_HARMLESS_TEXT = "text"


@dataclass(frozen=True, slots=True)
class _Reply:
    """The provider's reply, still unread, to the texts `first` to `first + count - 1` of a call."""

    first: int
    count: int
    body: bytes


class OpenAIEmbedder:
    """Embeds text through the embeddings endpoint of OpenAI or of a compatible server.

    A call ends by its `timeout_s` whatever the provider does. The library alone cannot promise that: its timeouts
    start anew with every read from the socket, so a server that drips bytes holds its caller for ever, and its retries
    sleep up to two minutes. Hence the retries here, the library's turned off, and the requests run as asyncio tasks,
    which a deadline cancels for good.

    Safe to use from many threads; they share one pool of connections.
    """

    def __init__(
        self,
        *,
        model: str,
        dimensions: int,
        api_key: str | None,
        base_url: str | None,
        batch_size: int,
        request_timeout_s: float,
        retries: int,
        first_backoff_s: float = _FIRST_BACKOFF_S,
    ) -> None:
        """Connects to nothing yet.

        Args:
            model: The model's name at the provider.
            dimensions: The length of vectors expected; also asked for, of models that offer a choice.
            api_key: None for a server that needs none.
            base_url: The address up to and including the version, such as http://127.0.0.1:11434/v1. None: OpenAI.
            batch_size: Most texts in a request.
            request_timeout_s: Longest wait for the answer to one request.
            retries: How often a failed request is repeated.
            first_backoff_s: Longest pause before the first retry; it doubles with each.
        """
        self._model = model
        self._dimensions = dimensions
        self._batch_size = batch_size
        self._request_timeout_s = request_timeout_s
        self._retries = retries
        self._first_backoff_s = first_backoff_s
        name = model.rpartition("/")[2]  # gateways put the maker first: openai/text-embedding-3-small
        self._requested_dimensions = dimensions if name.startswith("text-embedding-3-") else openai.omit
        # OpenAI advises it for this model and its predecessors; later ones tell newlines from spaces.
        self._replace_newlines = name == "text-embedding-ada-002"
        self._client = openai.AsyncOpenAI(
            api_key=api_key or "none",  # the library insists on one
            base_url=base_url or DEFAULT_BASE_URL,
            max_retries=0,
            timeout=None,
        )
        self._loop = LoopThread("openai-embedder", on_close=self._client.close)

    @property
    def model(self) -> str:
        """The model's name."""
        return self._model

    @property
    def dimensions(self) -> int:
        """The length of the vectors."""
        return self._dimensions

    @property
    def cacheable(self) -> bool:
        """True: a request takes long and costs money."""
        return True

    def embed(
        self, texts: Sequence[str], *, timeout_s: float, cancellation: Cancellation | None = None
    ) -> NDArray[np.float32]:
        """Returns the embeddings of `texts`, in their order, shape (len(texts), dimensions), not normalized.

        Raises:
            TextNotEmbeddable: A text is blank, too long for the model, or refused for another reason.
            EmbedderUnavailable: No answer in `timeout_s`, or errors until the retries or the time ran out.
            EmbedderMisconfigured: The provider refuses the key, the model or the request, or its vectors do not fit.
        """
        refuse_blank(texts)
        sent = [text.replace("\n", " ") if self._replace_newlines else text for text in texts]
        try:
            replies = self._loop.run(self._ask_for_all(sent, timeout_s), cancellation)
        except Stopped:
            raise RequestGivenUp("the request was given up", retry_after_s=_RETRY_AFTER_S) from None
        except LoopClosed:
            raise RequestGivenUp("the embedder is closed", retry_after_s=_RETRY_AFTER_S) from None
        vectors = np.empty((len(texts), self._dimensions), np.float32)
        for reply in replies:  # read here, not on the loop, where it would hold up the other calls
            rows = read_vectors(reply.body, count=reply.count, dimensions=self._dimensions)
            vectors[reply.first : reply.first + reply.count] = rows
        return vectors

    def close(self) -> None:
        """Closes the connections; calls under way raise EmbedderUnavailable."""
        self._loop.close()

    async def _ask_for_all(self, texts: list[str], timeout_s: float) -> list[_Reply]:
        deadline = asyncio.get_running_loop().time() + timeout_s
        sizes = [len(text.encode()) for text in texts]
        slots = asyncio.Semaphore(_CONCURRENT_REQUESTS)

        async def ask(batch: slice) -> list[_Reply]:
            async with slots:
                return await self._ask(texts[batch], first=batch.start, deadline=deadline)

        try:
            async with asyncio.timeout_at(deadline), asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(ask(batch))
                    for batch in batches(sizes, max_items=self._batch_size, max_size=REQUEST_BYTES)
                ]
        except TimeoutError:
            raise EmbedderUnavailable(_no_answer(timeout_s), retry_after_s=_RETRY_AFTER_S) from None
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [reply for task in tasks for reply in task.result()]

    async def _ask(self, texts: list[str], *, first: int, deadline: float) -> list[_Reply]:
        """Returns the replies for `texts`, whose first is number `first` of the call.

        A provider that refuses a request seldom says which text it means, or whether there are only too many. So the
        halves are asked for, and theirs: in the end a single text is refused, or all is embedded.
        """
        try:
            return [_Reply(first, len(texts), await self._request(texts, deadline=deadline))]
        except Refused as refused:
            if refused.index is not None and refused.index < len(texts):
                raise TextNotEmbeddable(first + refused.index, refused.reason) from None
            if len(texts) == 1:
                if not refused.too_many_tokens:
                    await self._check_that_any_text_is_accepted(deadline)
                raise TextNotEmbeddable(first, refused.reason) from None
            logger.warning("embedding_request_split", texts=len(texts), status=refused.status)
        middle = len(texts) // 2
        left = await self._ask(texts[:middle], first=first, deadline=deadline)
        return left + await self._ask(texts[middle:], first=first + middle, deadline=deadline)

    async def _check_that_any_text_is_accepted(self, deadline: float) -> None:
        try:
            await self._request([_HARMLESS_TEXT], deadline=deadline)
        except Refused as refused:
            raise EmbedderMisconfigured(
                f"the embedding provider refuses every request (HTTP {refused.status})"
            ) from None

    async def _request(self, texts: list[str], *, deadline: float) -> bytes:
        """Returns the body of the reply to a request for `texts`, repeated while that may help."""
        attempt = 0
        while True:
            try:
                return await self._request_once(texts)
            except Failed as failed:
                pause_s = (failed.retry_after_s or 0.0) + self._backoff_s(attempt)
                if attempt == self._retries or asyncio.get_running_loop().time() + pause_s >= deadline:
                    retry_after_s = _RETRY_AFTER_S if failed.retry_after_s is None else failed.retry_after_s
                    raise EmbedderUnavailable(str(failed), retry_after_s=retry_after_s) from None
                attempt += 1
                logger.warning("embedding_request_retried", reason=str(failed), retry=attempt, pause_s=pause_s)
                await asyncio.sleep(pause_s)

    async def _request_once(self, texts: list[str]) -> bytes:
        try:
            async with asyncio.timeout(self._request_timeout_s):
                reply = await self._client.embeddings.with_raw_response.create(
                    model=self._model, input=texts, dimensions=self._requested_dimensions, encoding_format="base64"
                )
        except TimeoutError:
            raise Failed(_no_answer(self._request_timeout_s)) from None
        except openai.APIConnectionError:
            raise Failed("the embedding provider cannot be reached") from None
        except openai.APIStatusError as error:
            logger.warning(
                "embedding_request_failed",
                texts=len(texts),
                status=error.status_code,
                code=error.code,
                provider_request_id=error.request_id,
            )
            raise explain(error, model=self._model) from None
        return reply.content

    def _backoff_s(self, attempt: int) -> float:
        longest_s = min(self._first_backoff_s * 2.0**attempt, _LONGEST_BACKOFF_S)
        return longest_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries, keeps no secret


def _no_answer(waited_s: float) -> str:
    return f"the embedding provider did not answer within {waited_s:g} s"
