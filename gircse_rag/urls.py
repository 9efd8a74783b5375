"""URLs of servers that may need credentials: Qdrant, and `gircse serve`."""

from __future__ import annotations

import base64
import ipaddress
import os
import warnings
from urllib.parse import urlsplit

from gircse_rag.errors import GircseWarning
from gircse_rag.redaction import split_credentials

_warned: set[str] = set()


def read_credentials(url: str, key_variable: str) -> tuple[str, str | None, str | None]:
    """Take user and password out of a server's URL, and read its API key from the environment.

    Warns (GircseWarning), once per URL, if one of them would cross a network unencrypted.

    Returns:
        The URL without user and password; the value of an HTTP header `Authorization` with them, or None; the API key,
        or None.
    """
    address, login = split_credentials(url)
    key = os.environ.get(key_variable) or None
    if (key or login) and address not in _warned and _is_unencrypted(address):
        _warned.add(address)
        secret = f"the API key in {key_variable}" if key else "the password in the url"
        warnings.warn(
            f"{secret} is sent to {address} without encryption, so everyone on the way can read it; use https",
            GircseWarning,
            stacklevel=4,
        )
    basic = None if login is None else f"Basic {base64.b64encode(':'.join(login).encode()).decode()}"
    return address, basic, key


def _is_unencrypted(url: str) -> bool:
    """Whether requests to `url` leave this machine over plain HTTP."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:  # no URL, or no port: the client refuses it
        return False
    if parts.scheme.lower() != "http" or host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True
