"""Each package builds a wheel with complete metadata, which installs and runs outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from integrations.fixtures import ROOT

LIBRARY = "gircse-rag"
# A minimal user program per package. MODEL is replaced by the model folder.
PROGRAMS = {
    LIBRARY: """
import gircse_rag as module
from gircse_rag import Embedder
from gircse_rag.qdrant import Document, ingest, open_client, search
embedder, client = Embedder.from_pretrained(MODEL, dtype="float32", device="cpu"), open_client("store")
assert ingest([Document("a", "a heap")], collection="c", embedder=embedder, client=client).added == 1
print(search("heap", collection="c", embedder=embedder, client=client, instruction="Find it")[0].text)
""",
    "langchain-gircse": """
import langchain_gircse as module
from langchain_gircse import GircseEmbeddings
from langchain_gircse.qdrant import GircseQdrantVectorStore
embeddings = GircseEmbeddings(model=MODEL, dtype="float32", device="cpu")
store = GircseQdrantVectorStore.from_texts(["a heap"], embeddings, path="store")
print(store.as_retriever().invoke("heap", instruction="Find it")[0].page_content)
""",
    "llama-index-embeddings-gircse": """
import llama_index.embeddings.gircse as module
from gircse_rag.qdrant import open_client
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.embeddings.gircse import GircseEmbedding
from llama_index.embeddings.gircse.qdrant import GircseQdrantVectorStore
embed_model = GircseEmbedding(model_name=MODEL, dtype="float32", device="cpu", query_instruction="Find it")
store = GircseQdrantVectorStore("c", open_client("store"), embed_model)
context = StorageContext.from_defaults(vector_store=store)
documents = [Document(text="a heap")]
index = VectorStoreIndex.from_documents(documents, storage_context=context, embed_model=embed_model)
print(index.as_retriever().retrieve("heap")[0].text)
""",
    "sentence-transformers-gircse": """
import sentence_transformers_gircse as module
from sentence_transformers import SentenceTransformer
from sentence_transformers_gircse import GircseModule
model = SentenceTransformer(modules=[GircseModule(MODEL, dtype="float32", device="cpu")], device="cpu")
model.save_pretrained("saved")
model = SentenceTransformer("saved", trust_remote_code=True, device="cpu")
assert model.similarity(model.encode_query("heap"), model.encode_document("a heap")).shape == (1, 1)
print("a heap")
""",
    "mteb-gircse": """
import mteb_gircse as module
from mteb_gircse import GircseEncoder
assert GircseEncoder(MODEL, dtype="float32", device="cpu").mteb_model_meta.use_instructions
print("a heap")
""",
    "gircse-haystack": """
import haystack_integrations.components.embedders.gircse as module
from haystack import Document
from haystack_integrations.components.embedders.gircse import GircseDocumentEmbedder, GircseTextEmbedder
from haystack_integrations.components.retrievers.gircse import GircseQdrantEmbeddingRetriever
from haystack_integrations.document_stores.gircse import GircseQdrantDocumentStore
settings = {"model": MODEL, "dtype": "float32"}
store = GircseQdrantDocumentStore("c", GircseDocumentEmbedder(**settings), path="store")
store.write_documents([Document(content="a heap")])
vector = GircseTextEmbedder(**settings).run("heap", instruction="Find it")["embedding"]
print(GircseQdrantEmbeddingRetriever(store).run(vector)["documents"][0].content)
""",
}
FOLDERS = {path.parent.name: path.parent for path in (ROOT / "integrations").glob("*/pyproject.toml")} | {LIBRARY: ROOT}


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-3000:]


@pytest.fixture(scope="module")
def site_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build all wheels and install them, without dependencies, into an empty folder."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", wheels, *FOLDERS.values())
    built = sorted(wheels.glob("*.whl"))
    assert len(built) == len(FOLDERS)
    pip("install", "--no-deps", "--no-index", "--target", target, *built)
    return target


def test_every_package_has_a_program() -> None:
    assert PROGRAMS.keys() == FOLDERS.keys()


@pytest.mark.parametrize("name", PROGRAMS)
def test_wheel_metadata(name: str, site_folder: Path) -> None:
    folder = site_folder / f"{name.replace('-', '_')}-0.1.0.dist-info"
    metadata = PathDistribution(folder).metadata
    assert metadata["Name"] == name
    assert metadata["License-Expression"] == "Apache-2.0"
    assert (folder / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith(f"# {'LlamaIndex' if 'llama' in name else name}")
    requirements = metadata.get_all("Requires-Dist")
    files = [path.as_posix() for path in PathDistribution(folder).files]
    packages = {path.rpartition("/")[0] for path in files if path.endswith("/__init__.py")}
    tops = {package for package in packages if not any(package.startswith(f"{other}/") for other in packages)}
    assert all(f"{top}/py.typed" in files for top in tops)
    assert not [path for path in files if "test" in path or path.endswith((".pkl", ".bin"))]
    if name == LIBRARY:
        assert "gircse_rag/checkpoint/weights/smollm2-135m/adapter_model.safetensors" in files
        frameworks = ("langchain", "llama", "sentence-transformers", "mteb", "haystack")
        optional = ("extra == 'dev'", "extra == 'teacher'")  # tests of the server, and distillation
        assert not [each for each in requirements if each.startswith(frameworks) and not each.endswith(optional)]
    else:
        assert "gircse-rag<0.2,>=0.1" in requirements
        mandatory = [each for each in requirements if "extra ==" not in each]
        assert len(mandatory) == 2, "a package requires only gircse-rag and its framework"


def test_programs_run_outside_the_repository(site_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    program = "import os, gircse_rag\n"
    for name, lines in PROGRAMS.items():
        (tmp_path / name).mkdir()
        program += f"os.chdir({str(tmp_path / name)!r})\n{lines.replace('MODEL', repr(str(tiny_folder)))}"
        program += f"print({name!r}, module.__file__, gircse_rag.__file__)\n"
    # -S skips the .pth files of the editable installs, which point into the repository.
    process = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site_folder), sysconfig.get_path("purelib")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    output = process.stdout.splitlines()
    assert output.count("a heap") == len(PROGRAMS)
    for name in PROGRAMS:
        ((_, *files),) = (line.split() for line in output if line.startswith(f"{name} "))
        assert all(Path(file).is_relative_to(site_folder) for file in files), files
