"""The retry policy for every server this library talks to: Qdrant (qdrant/retry.py) and `gircse serve` (ServerBackend).

Waits grow exponentially with full jitter (Brooker, "Exponential Backoff And Jitter", 2015). They are never shorter than
the answer's Retry-After header asks for.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

import httpx
import tenacity

DEADLINE = 300.0
"""Seconds of failures after which a request is given up: longer than a server takes to restart."""
FIRST_WAIT, LONGEST_WAIT = 0.25, 30.0
"""Upper bounds in seconds of the backoff before the second attempt, and before any other. Retry-After may be longer."""
RETRIED_STATUS = frozenset({408, 429, 502, 503, 504})
"""HTTP status codes after which the same request may succeed."""
CLIENT_FAULTS = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
"""Transport errors caused by our own request; sending it again cannot help."""


def wait_with_backoff(retry_after: Callable[[tenacity.RetryCallState], float]) -> Callable[..., float]:
    """A tenacity wait: exponential with full jitter, at least `retry_after(state)` seconds."""
    backoff = tenacity.wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT)

    def wait(state: tenacity.RetryCallState) -> float:
        # Up to a tenth longer than Retry-After: otherwise all rejected clients return at the same moment.
        return max(backoff(state), retry_after(state) * random.uniform(1, 1.1))

    return wait


def parse_retry_after(value: str) -> float:
    """Seconds to wait according to a Retry-After header (a number or a date); 0 for anything else."""
    try:
        return float(value) if value.isdigit() else max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0
