"""Fetching the keys that an issuer of tokens publishes (JWKS, RFC 7517), found by OpenID Connect Discovery."""

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.parse import urlsplit

from memory_service.access.http_time_limit import TimeLimit, TimeLimitedHandler
from memory_service.settings.identity import is_loopback, is_safe_url

FETCH_TIMEOUT_S = 5.0
MAX_BYTES = 1 << 20
DISCOVERY = "/.well-known/openid-configuration"


class FetchFailed(Exception):
    """The keys cannot be had; the message says why, for the log."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    # A redirect could lead from https:// to anywhere.
    def redirect_request(  # noqa: PLR0917 - the signature is urllib's
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        """Follows none: urllib then fails with the status."""


class JwksSource:
    """The published keys of one issuer."""

    def __init__(self, *, issuer: str, jwks_url: str | None) -> None:
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._tls = ssl.create_default_context()

    def fetch(self) -> list[Any]:
        """Returns the keys as they are published, in up to two requests of FETCH_TIMEOUT_S each, once connected.

        Raises:
            FetchFailed: When they cannot be had.
        """
        published = self._get(self._jwks_url or self._discovered_url()).get("keys")
        if not isinstance(published, list):
            raise FetchFailed("the reply has no list of keys")
        return published

    def _discovered_url(self) -> str:
        document = self._get(self._issuer.rstrip("/") + DISCOVERY)
        if document.get("issuer") != self._issuer:
            raise FetchFailed("the configuration published by the issuer names another issuer")
        url = document.get("jwks_uri")
        if not isinstance(url, str) or not is_safe_url(url):
            raise FetchFailed("the configuration published by the issuer has no jwks_uri with https://")
        return url

    def _get(self, url: str) -> Mapping[str, Any]:
        try:
            document = json.loads(self._body(url))
        except urllib.error.HTTPError as error:
            with error:
                raise FetchFailed(f"{url} answered {error.code}") from None
        except (OSError, HTTPException) as error:
            raise FetchFailed(f"{url}: {error}") from None
        except (ValueError, RecursionError):
            raise FetchFailed(f"{url} answered something else than JSON") from None
        if not isinstance(document, dict):
            raise FetchFailed(f"{url} answered something else than an object")
        return document

    def _body(self, url: str) -> bytes:
        request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 - see is_safe_url
        with TimeLimit(FETCH_TIMEOUT_S) as limit:
            try:
                with self._opener(url, limit).open(request, timeout=FETCH_TIMEOUT_S) as response:
                    body = response.read(MAX_BYTES + 1)
            finally:
                if limit.over:  # whatever became of what was read
                    raise FetchFailed(f"{url} takes longer than {FETCH_TIMEOUT_S:g} s")
        if len(body) > MAX_BYTES:
            raise FetchFailed(f"{url} answered more than {MAX_BYTES} bytes")
        return bytes(body)

    def _opener(self, url: str, limit: TimeLimit) -> urllib.request.OpenerDirector:
        handlers: list[urllib.request.BaseHandler] = [TimeLimitedHandler(limit, self._tls), _NoRedirects()]
        # What is on this machine is asked directly, whatever proxy the environment names.
        if is_loopback(urlsplit(url).hostname or ""):
            handlers.append(urllib.request.ProxyHandler({}))
        return urllib.request.build_opener(*handlers)
