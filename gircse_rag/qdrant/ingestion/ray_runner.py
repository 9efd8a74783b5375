"""An ingest on several processes or machines: `ingest_on_ray`, a Ray Data stream.

    one task        read, and check each document against all before it      on the machine of the caller
    n actors        `ingest`, one embedder and one client each               anywhere
    the caller      adds the reports up; `sync`, at the end

A part, some documents, travels from the reader to one actor, which looks them up, cuts, embeds and writes them as an
ingest on one machine does, so nothing about a collection tells how many made it. Ray starts dead processes again and
gives them their part again; ids come from the documents, so what was written is found and not made again.
"""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Literal

from qdrant_client import QdrantClient

from gircse_rag.backoff import DEADLINE
from gircse_rag.documents.chunking import Chunker
from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.errors import GircseError, InputError, require
from gircse_rag.qdrant.ingestion.ray_stream import KEY, Part, Work, Worker, read
from gircse_rag.qdrant.ingestion.report import IngestReport, Progress
from gircse_rag.qdrant.ingestion.seen import Seen
from gircse_rag.qdrant.ingestion.sync import check_source
from gircse_rag.qdrant.ingestion.sync import sync as remove_gone
from gircse_rag.qdrant.points import Points
from gircse_rag.qdrant.retry import Retry
from gircse_rag.qdrant.schema import ensure_collection
from gircse_rag.qdrant.stores import store_errors

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder

# Of a part: enough that asking Ray costs nothing beside embedding it, little enough that all finish at about one time.
_PART_DOCUMENTS = 512
_READ_AHEAD_BYTES = 64 * 2**20  # for each worker; a part of long documents has a few of them
_TRIES_OF_A_PART = 4


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
) -> IngestReport:
    """`ingest`, by several workers, on the Ray cluster that RAY_ADDRESS names, else on this machine.

    What goes to other processes is made there, so documents, embedder and client are given as functions that make them;
    Ray pickles those (functools.partial of a function that can be imported is best). Everything else, and everything
    that is promised, is as for `ingest`; where a process died, what it had written counts as unchanged in the report.

    Args:
        documents: called once by the reader, and again if that dies: it has to give the same documents then.
        embedder: called once a worker, and here for its spec; `lazy=True` loads no model where nothing is embedded.
        client: of a server; an embedded store belongs to one process. QDRANT_API_KEY of this process is passed on.
        workers: embedding processes. Each takes one CPU of the cluster, and the memory of a model.
        gpus: of a worker.
        chunker: called with tokenizer and spec in every worker.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: as `ingest`; the client's store is an embedded one; or the cluster has too few CPUs or GPUs.
        GircseError: a worker died over and over at the same documents.
        SpecMismatchError, StoreError: as `ingest`.
    """
    if workers < 1:
        raise InputError(f"workers must be at least 1, not {workers}")
    check_source(source, sync)
    ray = require("ray", "ray")
    require("ray.data", "ray")
    report = IngestReport()
    with closing(client()) as store, store_errors(store), closing(Seen()) as seen:
        url = store.init_options.get("url")
        if not url:
            raise InputError(
                "Ray's workers are several processes, and an embedded store belongs to one; run a Qdrant server and "
                "give its url"
            )
        ask = Retry(str(url), deadline)
        ask(ensure_collection, store, collection, embedder().spec)
        work = Work(
            collection, embedder, client, chunker, batch_size, source, deadline, os.environ.get(KEY), _PART_DOCUMENTS
        )
        with _cluster(ray, workers, gpus), closing(_parts(ray, documents, work, workers, gpus)) as parts:
            for part in parts:
                if part.error is not None:
                    raise part.error
                report.add(part.report)
                if sync:
                    seen.before((document, "") for document in part.ids)
                    for failure in part.report.failed:
                        seen.failed(failure.id)
                if progress is not None:
                    progress(Progress(report.documents, report.embedded, report.prompt_tokens))
        if sync:
            remove_gone(Points(store, collection, ask), str(source), seen, report, delete=sync is True)
    report.retries += ask.repeated
    return report


def _parts(
    ray: Any, documents: Callable[[], Iterable[Document | SkippedFile]], work: Work, workers: int, gpus: float
) -> Generator[Part, None, None]:
    """The parts of a run, ingested, in the order in which they are done."""
    from ray.data import ActorPoolStrategy, DataContext, Datasource, ExecutionResources, ReadTask, read_datasource
    from ray.data.block import BlockMetadata

    class Documents(Datasource):
        def get_read_tasks(self, parallelism: int, *args: Any, **options: Any) -> list[ReadTask]:
            return [ReadTask(lambda: read(documents, work), BlockMetadata(None, None, None, None))]

        def estimate_inmemory_data_size(self) -> int | None:
            return None

    settings = DataContext.get_current().copy()
    settings.target_max_block_size = 1  # no two parts are put together: each is a task
    settings.enable_progress_bars = False
    settings.print_on_execution_start = False
    settings.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=(workers + 1) * _READ_AHEAD_BYTES
    )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    here = ray.get_runtime_context().get_node_id()
    with DataContext.current(settings):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*ray_remote_args. is deprecated", DeprecationWarning)  # as is the pin
            stream = read_datasource(
                Documents(),  # type: ignore[no-untyped-call]
                override_num_blocks=1,
                num_cpus=0,  # so that the workers, who take them all, cannot keep it waiting for ever
                label_selector={"ray.io/node-id": here},  # paths are those of this machine
            ).map_batches(
                Worker,
                fn_constructor_args=(work,),
                batch_size=1,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=workers),
                num_cpus=1,
                num_gpus=gpus,
                max_task_retries=_TRIES_OF_A_PART - 1,  # for ever, by default
            )
        try:
            for row in stream.iter_rows():
                yield pickle.loads(row["part"])
        except ray.exceptions.RayError as error:
            raise GircseError(
                f"Ray gave up on some documents ({type(error).__name__}: {str(error).strip()[-300:]}); what was "
                "written before is safe: run again"
            ) from error


@contextmanager
def _cluster(ray: Any, workers: int, gpus: float) -> Iterator[None]:
    """Ray as it runs, or one of our own that ends with the block.

    Raises:
        InputError: it has not what the workers take: they would wait for ever.
    """
    own = not ray.is_initialized()
    if own:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray Data's own actors make it complain
        here: dict[str, Any] = {"num_cpus": max(os.cpu_count() or 1, workers)}
        ray.init(
            include_dashboard=False,
            logging_level="error",
            log_to_driver=False,
            **({} if os.environ.get("RAY_ADDRESS") else here),
        )
    try:
        there = ray.cluster_resources()
        for kind, wanted in (("CPU", workers), ("GPU", workers * gpus)):
            if there.get(kind, 0) < wanted:
                raise InputError(
                    f"{workers} workers take {wanted:g} {kind}s, and Ray has {there.get(kind, 0):g}; ask for fewer"
                )
        yield
    finally:
        if own:
            ray.shutdown()
