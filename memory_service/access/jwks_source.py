"""Fetching the keys that an issuer of tokens publishes (JWKS, RFC 7517), found by OpenID Connect Discovery."""

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.parse import urlsplit

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
        context = ssl.create_default_context()
        https = urllib.request.HTTPSHandler(context=context)
        self._opener = urllib.request.build_opener(_NoRedirects, https)
        # What is on this machine is asked directly, whatever proxy the environment names.
        self._direct_opener = urllib.request.build_opener(_NoRedirects, https, urllib.request.ProxyHandler({}))

    def fetch(self) -> list[Any]:
        """Returns the keys as they are published, within FETCH_TIMEOUT_S for each of up to two requests.

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
        direct = is_loopback(urlsplit(url).hostname or "")
        opener = self._direct_opener if direct else self._opener
        request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 - see is_safe_url
        try:
            document = json.loads(_read(opener, request))
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


def _read(opener: urllib.request.OpenerDirector, request: urllib.request.Request) -> bytes:
    deadline_at = time.monotonic() + FETCH_TIMEOUT_S
    body = bytearray()
    with opener.open(request, timeout=FETCH_TIMEOUT_S) as response:
        # The timeout of a socket starts anew with every byte.
        while chunk := response.read1(65_536):
            body += chunk
            if len(body) > MAX_BYTES:
                raise FetchFailed(f"{request.full_url} answered more than {MAX_BYTES} bytes")
            if time.monotonic() > deadline_at:
                raise FetchFailed(f"{request.full_url} takes longer than {FETCH_TIMEOUT_S:g} s")
    return bytes(body)
