"""What the error answers of an OpenAI-compatible endpoint mean.

Only status, error code and `Retry-After` are passed on: an error's message may quote the text, the address or part
of the API key.
"""

import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import openai

from memory_service.embedding.errors import EmbedderMisconfigured, EmbedderUnavailable

_QUOTA_RETRY_AFTER_S = 60.0
_REFUSED = {400, 413, 422}  # 413: text-embeddings-inference, for a text of too many tokens
_RETRYABLE = {408, 409, 425, 429}

# As OpenAI says it: maximum context length is 8192 tokens; Invalid 'input[22]': maximum input length is 8192 tokens.
# text-embeddings-inference: `inputs` must have less than 512 tokens. Gateways: the model's context length is only 8192.
# llama.cpp: input (744 tokens) is too large to process; prefill 744 tokens exceed n_ctx_per_seq.
_TOO_MANY_TOKENS = re.compile(
    r"maximum input length|context (?:length|size)|less than \d+ tokens|tokens exceed|too (?:long|large)",
    re.IGNORECASE,
)
_TOKEN_LIMIT = re.compile(r"(?:length is|less than) (\d{1,9}) tokens", re.IGNORECASE)
_INDEX = re.compile(r"\binput\[(\d{1,6})\]")


class Failed(Exception):
    """The provider gave no answer, or none but an error that may pass."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """The provider's own wish, None where it gave none."""


class Refused(Exception):
    """The provider refused a request over what is in it: one of its texts, their sum, or anything else."""

    def __init__(self, reason: str, *, status: int, index: int | None, too_many_tokens: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        """A predicate for TextNotEmbeddable, free of the provider's own words."""
        self.status = status
        self.index = index
        """The text the provider named, counted from 0 within the request."""
        self.too_many_tokens = too_many_tokens
        """Whether the refusal is about length, hence about the texts and nothing else."""


def explain(
    error: openai.APIStatusError, *, model: str
) -> Refused | Failed | EmbedderUnavailable | EmbedderMisconfigured:
    """Returns what `error`, the answer to a request for embeddings by `model`, means."""
    status = error.status_code
    too_many_tokens = _TOO_MANY_TOKENS.search(error.message) is not None
    # llama.cpp answers 500 to a text of too many tokens (canonical/inference-snaps#344).
    if status in _REFUSED or (status == 500 and too_many_tokens):  # noqa: PLR2004 - "internal server error"
        return _refused(error, too_many_tokens=too_many_tokens)
    if error.code == "insufficient_quota":  # a 429, but one that waiting a moment does not mend
        return EmbedderUnavailable("the quota at the embedding provider is used up", retry_after_s=_QUOTA_RETRY_AFTER_S)
    if status in _RETRYABLE or status >= 500:  # noqa: PLR2004 - the class of server errors
        what = "is limiting our requests" if status == 429 else "failed"  # noqa: PLR2004 - "too many requests"
        return Failed(
            f"the embedding provider {what} (HTTP {status})", retry_after_s=retry_after_s(error.response.headers)
        )
    meaning = {
        401: "does not accept the API key",
        403: "denies access with this API key",
        404: f"has no model {model!r}, or no embeddings at the configured address",
    }
    return EmbedderMisconfigured(f"the embedding provider {meaning.get(status, 'refuses requests')} (HTTP {status})")


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds to wait that `headers` ask for, None where they do not.

    Understands `Retry-After` in seconds or as a date (RFC 9110, 10.2.3), and the more exact `retry-after-ms`.
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wait_s = float(headers[name]) * unit_s
        except (KeyError, ValueError):
            continue
        if math.isfinite(wait_s):
            return max(0.0, wait_s)
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError, OverflowError):
        return None


def _refused(error: openai.APIStatusError, *, too_many_tokens: bool) -> Refused:
    named = _INDEX.search(f"{error.param} {error.message}")
    limit = _TOKEN_LIMIT.search(error.message)
    if not too_many_tokens:
        reason = f"was refused by the embedding provider (HTTP {error.status_code})"
    elif limit:
        reason = f"has more than the {limit[1]} tokens the embedding model takes"
    else:
        reason = "has more tokens than the embedding model takes"
    return Refused(
        reason,
        status=error.status_code,
        index=int(named[1]) if named else None,
        too_many_tokens=too_many_tokens,
    )
