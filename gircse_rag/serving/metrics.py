"""Metrics for Prometheus, at `GET /metrics`. `deploy/grafana.json` is a dashboard of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gircse_rag.engine.engine import EngineStats

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300)


class Metrics:
    """Counters of one server.

    Args:
        engine: gives the engine's state.
        requests: gives the number of requests under way and of requests that wait.
    """

    def __init__(self, engine: Callable[[], EngineStats], requests: Callable[[], tuple[int, int]]) -> None:
        self._registry = CollectorRegistry()
        options: dict[str, Any] = {"registry": self._registry}
        labels = ["route", "status"]
        self._requests = Counter("gircse_http_requests", "Requests answered.", labels, **options)
        self._seconds = Histogram(
            "gircse_http_request_seconds", "Time to answer a request.", ["route"], buckets=_SECONDS, **options
        )
        self._texts = Counter("gircse_texts", "Texts embedded, duplicates included.", **options)
        self._tokens = Counter("gircse_prompt_tokens", "Prompt tokens of these texts.", **options)
        self._registry.register(_StateCollector(engine, requests))

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request. `route` is the route's pattern, not its path."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_texts(self, texts: int, prompt_tokens: int) -> None:
        """Count embedded texts."""
        self._texts.inc(texts)
        self._tokens.inc(prompt_tokens)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _StateCollector(Collector):
    """Reads the state of engine and queue when Prometheus asks."""

    def __init__(self, engine: Callable[[], EngineStats], requests: Callable[[], tuple[int, int]]) -> None:
        self._engine, self._count_requests = engine, requests

    def collect(self) -> Iterator[Any]:
        stats = self._engine()
        running, waiting = self._count_requests()
        gauges = {
            "gircse_requests_running": ("Requests that the engine works on.", running),
            "gircse_requests_waiting": ("Requests in the queue.", waiting),
            "gircse_sequences_running": ("Texts that hold KV blocks.", stats.running),
            "gircse_sequences_waiting": ("Texts that wait for KV blocks or their turn.", stats.waiting),
            "gircse_kv_blocks_used": ("KV blocks that running texts hold.", stats.used_blocks),
            "gircse_kv_blocks": ("KV blocks in total.", stats.num_blocks),
        }
        totals = {
            "gircse_engine_steps": ("Forwards of the model.", stats.steps),
            "gircse_engine_rows": ("Rows computed: prompt tokens and soft tokens.", stats.rows),
            "gircse_prefix_cache_hit_tokens": ("Prompt tokens taken from the prefix cache.", stats.prefix_hits),
            "gircse_preemptions": ("Times that a text returned its KV blocks before it was done.", stats.preemptions),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value)
        for name, (text, value) in totals.items():
            yield CounterMetricFamily(name, text, value)
