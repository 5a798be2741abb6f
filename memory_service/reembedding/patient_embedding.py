"""Embedding many texts with a provider that may be away for a while: refusals are told, outages waited out."""

import time
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from threading import Event

import numpy as np
import structlog

from db.vectors import Embedding, InvalidEmbedding, normalize_rows
from memory_service.backoff import Backoff
from memory_service.embedding.blank import NOTHING_TO_EMBED, is_blank
from memory_service.embedding.errors import EmbedderMisconfigured, EmbedderUnavailable, TextNotEmbeddable
from memory_service.embedding.micro_batching import Answer, MicroBatching, Vector

log = structlog.get_logger(__name__)

HARMLESS_TEXT = "memory"
LOOK_EVERY_S = 0.25
# Once asked to stop, so long is waited for requests under way: they may have cost money.
STOP_GRACE_S = 10.0
# No provider is asked more seldom, whatever it wishes.
LONGEST_PAUSE_S = 300.0


class Stopped(Exception):
    """The work was asked to stop; what is stored is kept."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A text that the model does not embed, and why."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientEmbedding:
    """Embeds texts through one provider; safe to use from many threads."""

    batching: MicroBatching
    pauses: Backoff
    stop: Event

    def require_usable(self) -> None:
        """Embeds one word; raises EmbeddingError where that fails, however it may pass."""
        [answer] = self.batching.submit([HARMLESS_TEXT])
        self._wait([answer])
        answer.result()

    def embed(self, texts: Sequence[str]) -> list[Embedding | Refused]:
        """Returns the normalized embedding of each text, in order, or why there is none.

        Raises:
            EmbedderMisconfigured: The provider refuses whatever it is asked.
            Stopped: `stop` was set while the provider was away.
        """
        found: dict[int, Vector | Refused] = {
            index: Refused(NOTHING_TO_EMBED) for index, text in enumerate(texts) if is_blank(text)
        }
        failures = 0
        while missing := [index for index in range(len(texts)) if index not in found]:
            answers, failure = self._ask([texts[index] for index in missing])
            found |= {index: answer for index, answer in zip(missing, answers, strict=True) if answer is not None}
            if failure is not None:
                failures = 1 if any(answer is not None for answer in answers) else failures + 1
                self._pause(failures, failure)
        return _normalized([found[index] for index in range(len(texts))])

    def _ask(self, texts: list[str]) -> tuple[list[Vector | Refused | None], EmbedderUnavailable | None]:
        """Returns what the provider answers to each text, None where it was away, and how it was away."""
        answers = self.batching.submit(texts)
        self._wait(answers)
        errors = [answer.exception() for answer in answers]
        failure = next((error for error in errors if isinstance(error, EmbedderUnavailable)), None)
        suspects = {index for index, error in enumerate(errors) if isinstance(error, EmbedderMisconfigured)}
        if suspects:
            # Either the provider refuses everything, or one of these texts makes it answer nonsense: NaN, for example.
            try:
                self.require_usable()
            except EmbedderUnavailable as error:
                return [None if index in suspects else _read(answer) for index, answer in enumerate(answers)], error
        found = [
            self._ask_alone(texts[index]) if index in suspects else _read(answer)
            for index, answer in enumerate(answers)
        ]
        return found, failure

    def _ask_alone(self, text: str) -> Vector | Refused | None:
        [answer] = self.batching.submit([text])
        self._wait([answer])
        if isinstance(error := answer.exception(), EmbedderMisconfigured):
            return Refused(f"makes the provider fail: {error}")
        return _read(answer)

    def _wait(self, answers: Sequence[Answer]) -> None:
        stopping_at: float | None = None
        while wait(answers, LOOK_EVERY_S).not_done:
            if stopping_at is None and self.stop.is_set():
                stopping_at = time.monotonic()
            if stopping_at is not None and time.monotonic() - stopping_at > STOP_GRACE_S:
                for answer in answers:
                    answer.cancel()
                raise Stopped

    def _pause(self, failures: int, failure: EmbedderUnavailable) -> None:
        pause_s = max(self.pauses.delay_s(failures), min(failure.retry_after_s, LONGEST_PAUSE_S))
        log.warning("embedding_provider_away", reason=str(failure), pause_s=round(pause_s, 1))
        if self.stop.wait(pause_s):
            raise Stopped


def _read(answer: Answer) -> Vector | Refused | None:
    """Returns the answer to one text; raises what is neither a refusal nor an outage."""
    match error := answer.exception():
        case None:
            return answer.result()
        case TextNotEmbeddable():
            return Refused(error.reason)
        case EmbedderUnavailable():
            return None
        case _:
            raise error


def _normalized(found: Sequence[Vector | Refused]) -> list[Embedding | Refused]:
    vectors = [vector for vector in found if not isinstance(vector, Refused)]
    normalized = iter(normalize_rows(np.stack(vectors)) if vectors else ())
    return [one if isinstance(one, Refused) else _usable(next(normalized)) for one in found]


def _usable(embedding: Embedding | InvalidEmbedding) -> Embedding | Refused:
    return Refused(f"its embedding {embedding}") if isinstance(embedding, InvalidEmbedding) else embedding
