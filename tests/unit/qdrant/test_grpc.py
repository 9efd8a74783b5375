"""The real client over real gRPC, against a stub server that records requests and fails on purpose.

The tests check the requests and how errors are handled. The stub's answers are made up: it stores nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from qdrant_client import grpc as qdrant
from qdrant_client import models

from gircse_rag.errors import InputError, StoreError
from gircse_rag.qdrant import Document, IngestReport, create_collection, ingest, open_client
from gircse_rag.qdrant.points import point_id
from tests.stand_in import StandIn

DOCUMENTS = [Document(str(number), f"text number {number}", {"n": number}) for number in range(20)]


class Server(qdrant.PointsServicer, qdrant.CollectionsServicer):
    """Accepts every call and stores nothing.

    Attributes:
        calls: (request, metadata) of every call.
        faults: one for each of the next Upserts: a gRPC status code, a status of the write, or None.
        times: when each Upsert came, in seconds of time.monotonic.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, dict[str, str]]] = []
        self.faults: list[Any] = []
        self.times: list[float] = []

    def requests(self, kind: Any) -> list[Any]:
        return [request for request, _ in self.calls if isinstance(request, kind)]

    def _record(self, request: Any, context: Any) -> None:
        self.calls.append((request, dict(context.invocation_metadata())))

    def CollectionExists(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._record(request, context)
        exists = bool(self.requests(qdrant.CreateCollection))
        return qdrant.CollectionExistsResponse(result=qdrant.CollectionExists(exists=exists))

    def Create(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._record(request, context)
        return qdrant.CollectionOperationResponse(result=True)

    def CreateFieldIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._record(request, context)
        return _write_response(qdrant.UpdateStatus.Completed)

    def Get(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._record(request, context)
        if isinstance(request, qdrant.GetCollectionInfoRequest):
            return _collection_info(self.requests(qdrant.CreateCollection)[-1])
        return qdrant.GetResponse()

    def Upsert(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._record(request, context)
        self.times.append(time.monotonic())
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, grpc.StatusCode):
            if fault is grpc.StatusCode.RESOURCE_EXHAUSTED:
                context.set_trailing_metadata((("retry-after", "1"),))
            context.abort(fault, f"{fault.name} on purpose")
        return _write_response(qdrant.UpdateStatus.Completed if fault is None else fault)


def _collection_info(request: Any) -> Any:
    """The description of a new collection, with only the fields that the client needs."""
    vectors, sparse = request.vectors_config, request.sparse_vectors_config
    config = qdrant.CollectionConfig(
        params=qdrant.CollectionParams(shard_number=1, vectors_config=vectors, sparse_vectors_config=sparse),
        hnsw_config=qdrant.HnswConfigDiff(m=16, ef_construct=100, full_scan_threshold=10_000),
        optimizer_config=qdrant.OptimizersConfigDiff(
            deleted_threshold=0.2, vacuum_min_vector_number=1000, default_segment_number=0, flush_interval_sec=5
        ),
        wal_config=qdrant.WalConfigDiff(wal_capacity_mb=32, wal_segments_ahead=0),
        metadata=request.metadata,
    )
    status = qdrant.OptimizerStatus(ok=True)
    return qdrant.GetCollectionInfoResponse(
        result=qdrant.CollectionInfo(status=qdrant.CollectionStatus.Green, optimizer_status=status, config=config)
    )


def _write_response(status: int) -> Any:
    return qdrant.PointsOperationResponse(result=qdrant.UpdateResult(operation_id=1, status=status))  # type: ignore[arg-type]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, int]]:
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)
    server, port = grpc.server(ThreadPoolExecutor(2)), 0
    stub = Server()
    qdrant.add_PointsServicer_to_server(stub, server)
    qdrant.add_CollectionsServicer_to_server(stub, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield stub, port
    server.stop(None).wait()


def _client(port: int, **options: Any) -> Any:
    return open_client(url="http://127.0.0.1:1", prefer_grpc=True, grpc_port=port, **options)


def _ingest(port: int, **options: Any) -> IngestReport:
    client = _client(port, **options.pop("client", {}))
    return ingest(DOCUMENTS, collection="docs", embedder=StandIn(), client=client, batch_size=5, **options)


def test_every_point_is_sent_with_confirmation_and_ordering(served: tuple[Server, int]) -> None:
    server, port = served
    assert _ingest(port, client={"write_ordering": "strong"}).added == 20
    upserts = server.requests(qdrant.UpsertPoints)
    assert all(request.wait and request.collection_name == "docs" for request in upserts)
    assert {request.ordering.type for request in upserts} == {qdrant.WriteOrderingType.Strong}
    points = {point.id.uuid: point for request in upserts for point in request.points}
    assert set(points) == {point_id(document.id, 0) for document in DOCUMENTS}
    for document in DOCUMENTS:
        point = points[point_id(document.id, 0)]
        vector = point.vectors.vectors.vectors["gircse"]
        np.testing.assert_array_equal(
            np.asarray(vector.dense.data or vector.data, np.float32), StandIn().vector(document.text)
        )
        assert point.payload["page_content"].string_value == document.text
        assert point.payload["metadata"].struct_value.fields["n"].integer_value == int(document.id)


def test_the_settings_of_a_collection_and_the_key_are_sent(
    served: tuple[Server, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, port = served
    monkeypatch.setenv("QDRANT_API_KEY", "s3cret")
    create_collection(
        _client(port),
        "docs",
        StandIn(),
        vector_params={"on_disk": True},
        payload_indexes={"metadata.kind": models.PayloadSchemaType.KEYWORD},
        shard_number=6,
        replication_factor=3,
        write_consistency_factor=2,
        on_disk_payload=True,
        quantization_config=models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
        ),
    )
    (created,) = server.requests(qdrant.CreateCollection)
    assert (created.shard_number, created.replication_factor, created.write_consistency_factor) == (6, 3, 2)
    assert created.on_disk_payload and created.quantization_config.scalar.always_ram
    vector = created.vectors_config.params_map.map["gircse"]
    assert (vector.size, vector.distance, vector.on_disk) == (16, qdrant.Distance.Cosine, True)
    spec = created.metadata["gircse"].struct_value.fields["fingerprint"].string_value
    assert spec == StandIn().fingerprint
    indexes = server.requests(qdrant.CreateFieldIndexCollection)
    assert [index.field_name for index in indexes] == ["gircse.document", "gircse.source", "metadata.kind"]
    assert all(index.wait for index in indexes)
    assert list(created.sparse_vectors_config.map) == ["bm25"]
    assert {metadata.get("api-key") for _, metadata in server.calls} == {"s3cret"}


def test_the_password_in_the_url_is_sent(served: tuple[Server, int]) -> None:
    server, port = served
    client = open_client(url="http://me:word@127.0.0.1:1", prefer_grpc=True, grpc_port=port)
    assert ingest(DOCUMENTS, collection="docs", embedder=StandIn(), client=client).added == 20
    assert {metadata.get("authorization") for _, metadata in server.calls} == {"Basic bWU6d29yZA=="}


@pytest.mark.parametrize(
    "fault",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        pytest.param(grpc.StatusCode.RESOURCE_EXHAUSTED, marks=pytest.mark.slow),
        qdrant.UpdateStatus.Acknowledged,
    ],
)
def test_transient_faults_are_retried_and_counted(served: tuple[Server, int], fault: Any) -> None:
    server, port = served
    server.faults = [fault, None, fault]
    report = _ingest(port)
    assert (report.added, report.retries, report.failed) == (20, 2, [])
    if fault is grpc.StatusCode.RESOURCE_EXHAUSTED:
        assert server.times[1] - server.times[0] >= 1, "retry-after was ignored"


def test_a_wrong_api_key_is_not_retried(served: tuple[Server, int]) -> None:
    server, port = served
    server.faults = [grpc.StatusCode.UNAUTHENTICATED] * 2
    with pytest.raises(StoreError, match="UNAUTHENTICATED on purpose"):
        _ingest(port)
    assert len(server.times) == 1


def test_a_refused_point_fails_only_its_document(served: tuple[Server, int]) -> None:
    server, port = served
    refused = grpc.StatusCode.INVALID_ARGUMENT
    server.faults = [refused, None, refused]  # the batch, then its first document, then its second
    report = _ingest(port)
    assert (report.added, [failure.id for failure in report.failed], report.retries) == (19, ["1"], 0)
    assert "refuses its points (INVALID_ARGUMENT on purpose)" in report.failed[0].reason


def test_a_collection_deleted_during_the_run_is_reported(served: tuple[Server, int]) -> None:
    server, port = served
    server.faults = [None, grpc.StatusCode.NOT_FOUND]
    with pytest.raises(StoreError, match=r"collection 'docs' is gone.*run again"):
        _ingest(port)


def test_after_the_deadline_the_error_gives_the_cause(served: tuple[Server, int]) -> None:
    server, port = served
    server.faults = [grpc.StatusCode.UNAVAILABLE] * 1000
    with pytest.raises(StoreError, match=r"failed \d+ times .*UNAVAILABLE: UNAVAILABLE on purpose.*run again"):
        _ingest(port, deadline=1.5)


@pytest.mark.parametrize("settings", [{"shard_number": 2**40}, {"vector_params": {"hnsw_config": {"m": 2**70}}}])
def test_a_setting_out_of_range_is_refused(served: tuple[Server, int], settings: dict[str, Any]) -> None:
    server, port = served
    with pytest.raises(InputError, match=r"'docs' cannot be created with these settings: .*out of range"):
        create_collection(_client(port), "docs", StandIn(), **settings)
    assert server.requests(qdrant.CreateCollection) == []
