"""Ingest with several processes or machines: `ingest_on_ray`, a Ray Data stream.

    one task        read, and check each document against all earlier ones   on the caller's machine
    n actors        `ingest`, each with its own embedder and client          anywhere in the cluster
    the caller      sum up the reports; `sync` at the end

The reader groups documents into parts and sends each part to one actor. The actor runs the same `ingest` as on one
machine, so the collection is the same for any number of workers. Ray restarts dead processes and repeats their part;
point ids derive from document ids, so the repetition finds what was written and does not embed it again.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Literal

from qdrant_client import QdrantClient

from gircse_rag.backoff import DEADLINE
from gircse_rag.documents.chunking import Chunker
from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.errors import GircseError, InputError, plural, require
from gircse_rag.qdrant.ingestion.dry_run import plan_ingest
from gircse_rag.qdrant.ingestion.ray_stream import API_KEY_VARIABLE, Part, Work, Worker, read
from gircse_rag.qdrant.ingestion.report import IngestReport, Progress
from gircse_rag.qdrant.ingestion.seen import Seen
from gircse_rag.qdrant.ingestion.sync import check_source, sync_source
from gircse_rag.qdrant.points import Points
from gircse_rag.qdrant.retry import Retry
from gircse_rag.qdrant.schema import ensure_collection
from gircse_rag.qdrant.stores import store_errors

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder

# Large enough that Ray's overhead is small beside embedding, small enough that workers finish at about the same time.
_DOCUMENTS_PER_PART = 512
_READ_AHEAD_BYTES = 64 * 2**20  # per worker; a part of long documents takes a few MiB
_MAX_TRIES_PER_PART = 4


def ingest_on_ray(
    documents: Callable[[], Iterable[Document | SkippedFile]],
    *,
    collection: str,
    embedder: Callable[[], Embedder],
    client: Callable[[], QdrantClient],
    workers: int = 2,
    gpus: float = 0,
    chunker: Callable[..., Chunker] = Chunker,
    batch_size: int = 128,
    progress: Callable[[Progress], None] | None = None,
    source: str | None = None,
    sync: bool | Literal["dry-run"] = False,
    deadline: float = DEADLINE,
    language: str | None = None,
    indexes: Mapping[str, str] | None = None,
) -> IngestReport:
    """Run `ingest` with several workers, on the Ray cluster at RAY_ADDRESS or else on this machine.

    `documents`, `embedder` and `client` are factories, because each process makes its own. Ray pickles them, so prefer
    functools.partial of an importable function. All other arguments and guarantees are those of `ingest`. If a process
    dies, documents it had written are reported as unchanged.

    Args:
        documents: called by the reader, and again if the reader dies; it must then give the same documents.
        embedder: called once per worker, and once here for its spec. With `lazy=True` the model loads on first use.
        client: makes a client of a Qdrant server, since one process alone can open an embedded store. QDRANT_API_KEY of
            this process is passed on.
        workers: number of embedding processes. Each takes one CPU of the cluster and the memory of one model.
        gpus: number of GPUs per worker.
        chunker: called with tokenizer and spec in every worker.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: as `ingest`; the client opens an embedded store; or the cluster has too few CPUs or GPUs.
        GircseError: a worker died repeatedly on the same documents.
        SpecMismatchError, StoreError: as `ingest`.
    """
    if workers < 1:
        raise InputError(f"workers must be at least 1, not {workers}")
    check_source(source, sync)
    if sync == "dry-run":  # nothing to embed, so no workers
        model = embedder()
        with closing(client()) as store:
            return plan_ingest(
                documents(),
                collection=collection,
                embedder=model,
                client=store,
                chunker=chunker(model.backend_tokenizer, model.spec),
                source=str(source),
                deadline=deadline,
                progress=progress,
            )
    ray = require("ray", "ray")
    require("ray.data", "ray")
    report = IngestReport()
    with closing(client()) as store, store_errors(store), closing(Seen()) as seen:
        url = store.init_options.get("url")
        if not url:
            reason = "only one process can open an embedded store, and Ray runs several"
            raise InputError(f"{reason}; run a Qdrant server and give its url")
        retry = Retry(str(url), deadline)
        retry(ensure_collection, store, collection, embedder().spec, language, indexes)
        api_key = os.environ.get(API_KEY_VARIABLE)
        work = Work(collection, embedder, client, chunker, batch_size, source, deadline, api_key, _DOCUMENTS_PER_PART)
        with _cluster(ray, workers, gpus), closing(_run_parts(ray, documents, work, workers, gpus)) as parts:
            for part in parts:
                if part.error is not None:
                    raise part.error
                report.add(part.report)
                if sync:
                    seen.compare_versions((document, "") for document in part.ids)
                    for failure in part.report.failed:
                        seen.add_failed(failure.id)
                if progress is not None:
                    done = report.documents
                    progress(Progress(done, report.embedded, report.prompt_tokens, done))
        if sync:
            sync_source(Points(store, collection, retry), str(source), seen, report, delete=True)
    report.retries += retry.repeated
    return report


def _run_parts(
    ray: Any, documents: Callable[[], Iterable[Document | SkippedFile]], work: Work, workers: int, gpus: float
) -> Generator[Part, None, None]:
    """Read and ingest all parts of a run; yield each when it is done, in order of completion."""
    from ray.data import ActorPoolStrategy, DataContext, Datasource, ExecutionResources, ReadTask, read_datasource
    from ray.data.block import BlockMetadata

    class Documents(Datasource):
        def get_read_tasks(self, parallelism: int, *args: Any, **options: Any) -> list[ReadTask]:
            return [ReadTask(lambda: read(documents, work), BlockMetadata(None, None, None, None))]

        def estimate_inmemory_data_size(self) -> int | None:
            return None

    settings = DataContext.get_current().copy()
    settings.target_max_block_size = 1  # never merge parts: each is one task
    settings.enable_progress_bars = False
    settings.print_on_execution_start = False
    memory = (workers + 1) * _READ_AHEAD_BYTES
    settings.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=memory)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    this_node = ray.get_runtime_context().get_node_id()
    with DataContext.current(settings):
        with warnings.catch_warnings():
            # `max_task_retries` can only be given this way, which the pinned versions of Ray still accept.
            warnings.filterwarnings("ignore", ".*ray_remote_args. is deprecated", DeprecationWarning)
            stream = read_datasource(
                Documents(),  # type: ignore[no-untyped-call]
                override_num_blocks=1,
                num_cpus=0,  # the workers may take all CPUs, and the reader must not wait for one
                label_selector={"ray.io/node-id": this_node},  # the paths are on this machine
            ).map_batches(
                Worker,
                fn_constructor_args=(work,),
                batch_size=1,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=workers),
                num_cpus=1,
                num_gpus=gpus,
                max_task_retries=_MAX_TRIES_PER_PART - 1,  # Ray's default is without limit
            )
        try:
            for row in stream.iter_rows():
                yield pickle.loads(row["part"])
        except ray.exceptions.RayError as error:
            raise GircseError(
                f"Ray gave up on some documents ({type(error).__name__}: {str(error).strip()[-300:]}). Run again: "
                "everything written so far is kept"
            ) from error


@contextmanager
def _cluster(ray: Any, workers: int, gpus: float) -> Iterator[None]:
    """Use the Ray that this process is connected to, or start or join one for the duration of the block.

    Raises:
        InputError: the cluster has too few CPUs or GPUs; the workers would wait for ever.
    """
    own = not ray.is_initialized()
    if own:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # hides complaints about Ray Data's own actors
        join = bool(os.environ.get("RAY_ADDRESS"))
        # Given no address, Ray looks for the last `ray start` on this machine, and fails if that has ended uncleanly.
        address, cpus = (None, None) if join else ("local", max(os.cpu_count() or 1, workers))
        on_terminate = signal.getsignal(signal.SIGTERM)
        ray.init(address, num_cpus=cpus, include_dashboard=False, logging_level="error", log_to_driver=False)
        if callable(on_terminate) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # Ray replaced it by one that exits with code 15
    try:
        available = ray.cluster_resources()
        for kind, needed in (("CPU", workers), ("GPU", workers * gpus)):
            if (has := available.get(kind, 0)) < needed:
                asked = f"{plural(workers, 'worker')} need {needed:g} {kind}{'' if needed == 1 else 's'}"
                raise InputError(f"{asked}, but Ray has {has:g}; use fewer")
        yield
    finally:
        if own:
            ray.shutdown()
