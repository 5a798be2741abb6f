"""Why a call is not let in; what a caller is told about each is decided in memory_service/errors.py."""


class AccessError(Exception):
    """The root of these errors; its message may be shown to the caller."""


class CredentialsMissing(AccessError):
    """The call brings neither an API key nor a token."""

    def __init__(self) -> None:
        super().__init__("this server asks for an API key or a token, sent as `authorization: Bearer ...`")


class CredentialsInvalid(AccessError):
    """The API key or token is unknown, malformed, expired or revoked; the message does not say which."""

    def __init__(self, refusal: str, *, subject: str | None = None) -> None:
        super().__init__("the API key or token is not valid")
        self.refusal = refusal
        """What is wrong, for the log; holds nothing of what the caller sent."""
        self.subject = subject
        """Whom the credentials claim to be of, where they name one who is known: `key:` and the id of an API key."""


class TokenKeysUnavailable(AccessError):
    """A token cannot be checked: the keys of its issuer cannot be fetched."""

    def __init__(self, *, retry_after_s: float) -> None:
        super().__init__("tokens cannot be checked at the moment: their issuer does not answer")
        self.retry_after_s = retry_after_s


class RoleInsufficient(AccessError):
    """The caller's role may not call this method."""

    def __init__(self, *, method: str, needed: str) -> None:
        super().__init__(f"{method} needs the role {needed}")
        self.needed = needed


class UserNotAllowed(AccessError):
    """The caller may not ask for this user."""

    def __init__(self) -> None:
        # Without the id: whoever guesses ids learns nothing from what comes back.
        super().__init__("these credentials are not for this user_id")


class LimitExceeded(AccessError):
    """A rate limit: later it may be different."""

    def __init__(self, message: str, *, limit: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.limit = limit
        """The name of the setting that says how much is allowed."""
        self.retry_after_s = retry_after_s


class Overloaded(LimitExceeded):
    """As many calls of this kind as may be are under way or wait: a moment later it may be different."""

    def __init__(self, message: str, *, limit: str) -> None:
        super().__init__(message, limit=limit, retry_after_s=0.25)


class QuotaExceeded(AccessError):
    """The user has as much as it may have."""

    def __init__(self, message: str, *, quota: str) -> None:
        super().__init__(message)
        self.quota = quota
        """The name of the setting that says how much is allowed."""
