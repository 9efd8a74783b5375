"""Limits and options of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits and options of a server.

    Attributes:
        model: the name that clients send as `model`.
        api_key: the key that clients must send; None lets everybody in.
        accept_token_ids: whether token ids are embedded without asking for their tokenizer.
        cors_origins: web pages of these origins may call the server.
        max_body_bytes: maximum size of a request's body.
        max_inputs: maximum number of texts, or of documents, per request.
        max_tokens: maximum number of prompt tokens per request, in all texts together.
        max_steps: maximum number of refinement steps per text.
        max_hits: maximum number of hits per search.
        max_concurrency: number of requests that the engine works on at once.
        max_queue: number of further requests that wait; more are refused with 429.
        timeout: seconds from the end of a request's body to its answer.
        body_timeout: seconds for a client to send a body.
        drain_timeout: seconds after SIGTERM for requests under way.
    """

    model: str
    api_key: str | None = None
    accept_token_ids: bool = False
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 8 * 2**20
    max_inputs: int = 2048
    max_tokens: int = 262_144
    max_steps: int = 64
    max_hits: int = 1000
    max_concurrency: int = 64
    max_queue: int = 256
    timeout: float = 300.0
    body_timeout: float = 30.0
    drain_timeout: int = 30
