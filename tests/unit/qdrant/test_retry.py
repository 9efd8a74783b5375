"""The real client over real HTTP, against a server that fails on purpose (tests/qdrant_shim.py)."""

from __future__ import annotations

import email.utils
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from qdrant_client import QdrantClient

from gircse_rag.errors import StoreError
from gircse_rag.qdrant import Document, IngestReport, ingest
from gircse_rag.qdrant.retry import Retry, StoppedError
from tests.qdrant_shim import FAULTS, Fault, Shim
from tests.stand_in import StandIn

pytestmark = pytest.mark.slow  # every test starts a server

DOCUMENTS = [Document(str(number), f"text number {number}") for number in range(20)]


@pytest.fixture
def shim() -> Iterator[Shim]:
    with Shim() as server:
        yield server


def _ingest(client: QdrantClient, **options: Any) -> IngestReport:
    return ingest(DOCUMENTS, collection="docs", embedder=StandIn(), client=client, batch_size=5, **options)


def _stored(shim: Shim) -> int:
    return shim.store.count("docs").count


@pytest.mark.parametrize("fault", FAULTS)
def test_transient_faults_are_retried_and_counted(shim: Shim, fault: Fault) -> None:
    shim.fail_next([fault, fault, None, fault])
    report = _ingest(shim.client())
    assert (report.added, report.retries, report.failed) == (20, 3, [])
    assert _stored(shim) == 20


@pytest.mark.parametrize(("method", "path"), [("PUT", "/collections/docs$"), ("POST", "/points$"), ("GET", "/exists$")])
@pytest.mark.parametrize("fault", ["503", "drop after"])
def test_reads_and_collection_creation_are_retried(shim: Shim, fault: Fault, method: str, path: str) -> None:
    shim.fail_next([fault], method, path)
    report = _ingest(shim.client())
    assert (report.added, report.retries, _stored(shim)) == (20, 1, 20)


def test_a_timeout_is_retried_and_points_written_twice_are_stored_once(shim: Shim) -> None:
    shim.delay_seconds = 1.5
    shim.fail_next(["delay"])
    report = _ingest(shim.client(timeout=1))
    assert (report.added, report.retries, _stored(shim)) == (20, 1, 20)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["2", "a date"])
def test_retry_after_is_respected(shim: Shim, form: str) -> None:
    # HTTP dates have whole seconds, so 4 s ahead means a wait of 3 to 4 s
    shim.retry_after = form if form == "2" else email.utils.formatdate(time.time() + 4, usegmt=True)
    shim.fail_next(["429"])
    assert _ingest(shim.client()).retries == 1
    first, second = [
        at
        for at, (method, path) in zip(shim.request_times, shim.requests, strict=True)
        if (method, path[-7:]) == ("PUT", "/points")
    ][:2]
    assert second - first >= 2


def test_a_wait_beyond_the_deadline_is_not_started(shim: Shim) -> None:
    shim.retry_after = "3600"
    shim.fail_next(["429"])
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"asked to wait 3600 s.*run again"):
        _ingest(shim.client(), deadline=60)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("fault", ["503", "drop before", "acknowledged"])
def test_after_the_deadline_the_error_gives_the_attempts_and_the_remedy(shim: Shim, fault: Fault) -> None:
    shim.fail_next(itertools.chain([None], itertools.repeat(fault, 200)))
    with pytest.raises(
        StoreError, match=rf"{shim.url} failed \d+ times in a row \(within 1.5 s\).*run again"
    ) as caught:
        _ingest(shim.client(), deadline=1.5)
    attempts = sum(request == ("PUT", "/collections/docs/points") for request in shim.requests) - 1
    assert attempts > 1 and f"failed {attempts} times" in str(caught.value)
    before = _stored(shim)
    assert before >= 5
    shim.fail_next([])
    again = _ingest(shim.client())
    assert (again.unchanged, again.added) == (before, 20 - before)


@pytest.mark.filterwarnings("ignore:Api key")
def test_a_wrong_api_key_is_not_retried(shim: Shim) -> None:
    shim.api_key = "right"
    with pytest.raises(StoreError, match=r"HTTP 401.*QDRANT_API_KEY"):
        _ingest(QdrantClient(url=shim.url, api_key="wrong", check_compatibility=False))
    assert len(shim.requests) == 1


def test_a_server_that_never_answered_is_not_retried() -> None:
    with Shim() as stopped:
        url = stopped.url
    began = time.monotonic()
    with pytest.raises(StoreError, match="does not answer"):
        _ingest(QdrantClient(url=url, check_compatibility=False))
    assert time.monotonic() - began < 10


def test_a_refused_point_fails_only_its_document(shim: Shim) -> None:
    shim.fail_next(["400", None, "400"])  # the batch, then its first document, then its second
    report = _ingest(shim.client())
    assert (report.added, [failure.id for failure in report.failed], report.retries) == (19, ["1"], 0)
    assert "refuses its points (HTTP 400: " in report.failed[0].reason and _stored(shim) == 19


def test_a_collection_deleted_during_the_run_is_reported(shim: Shim) -> None:
    def documents() -> Iterator[Document]:
        for number in range(10_000):
            if number == 500:
                QdrantClient(url=shim.url, check_compatibility=False).delete_collection("docs")
            yield Document(str(number), f"text number {number}")

    with pytest.raises(StoreError, match=r"collection 'docs' is gone.*run again"):
        ingest(documents(), collection="docs", embedder=StandIn(), client=shim.client())


class _TransientError(Exception):
    pass


def test_waits_grow_and_are_jittered(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.sleep_using_event.__call__", lambda self, seconds: waits.append(seconds))

    def failing() -> None:
        if len(waits) < 12:
            raise _TransientError

    monkeypatch.setattr(
        "gircse_rag.qdrant.retry.Retry._is_retryable", lambda _, error: isinstance(error, _TransientError)
    )
    Retry("a store", deadline=10_000)(failing)
    assert len(set(waits)) == 12 and max(waits) <= 30
    assert sum(waits[:4]) <= 0.25 * 15 and max(waits[6:]) > 1


def test_an_error_in_another_thread_ends_a_wait_at_once(shim: Shim) -> None:
    shim.retry_after = "60"
    shim.fail_next(["429"], "GET", "/collections$")
    retry, client = Retry("a store"), shim.client()
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            retry(client.get_collections)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    began = time.monotonic()
    thread.start()
    while not shim.requests:
        time.sleep(0.01)
    with pytest.raises(KeyError), retry.stopped_by_errors():
        raise KeyError
    thread.join(10)
    assert time.monotonic() - began < 10
    assert isinstance(outcome[0], StoppedError)
