"""Charging a call for a text that its request does not hold: stored content that an update embeds anew.

Rate limits are kept where calls are let in, and what embeds the text does not know who calls. It is the call's own
context that knows: gRPC runs each call in one.
"""

from collections.abc import Callable
from contextvars import ContextVar

from memory_service.access.request_cost import tokens_in

SpendTokens = Callable[[int], None]
"""Charges the caller for so many tokens; raises LimitExceeded."""

_of_this_call: ContextVar[SpendTokens | None] = ContextVar("late_charges", default=None)


def expect(spend_tokens: SpendTokens) -> None:
    """Has further texts of the current call charged this way."""
    _of_this_call.set(spend_tokens)


def charge(text: str) -> None:
    """Charges the current call for a text that is to be embedded.

    Raises:
        LimitExceeded: When its caller, or the user that it is about, has used up the tokens.
    """
    if (spend_tokens := _of_this_call.get()) is not None:
        spend_tokens(tokens_in(text))
