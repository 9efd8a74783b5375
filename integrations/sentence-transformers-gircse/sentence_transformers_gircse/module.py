"""GircseModule: the input module, and the only one, of a SentenceTransformer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from gircse_rag.checkpoint.bundled import BUNDLED
from gircse_rag.embedder import Embedder, Steps
from gircse_rag.errors import GircseError
from gircse_rag.prompts import INSTRUCTIONS, prefix
from gircse_rag.tokens import check_text
from gircse_rag.training.saving import replacing
from sentence_transformers.base.modules import InputModule
from sentence_transformers.util import get_device_name, load_dir_path

_CHECKPOINT = "checkpoint"
_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja")


class GircseModule(InputModule):
    """Embeds texts with a GIRCSE checkpoint.

    A prompt is `Instruct: {instruction}\\nQuery:`, the query template up to its text; any other is refused. A query
    without a prompt gets the checkpoint's default instruction, a document with one is refused, and plain `encode`
    without a prompt embeds a document. `prompts` has gircse-rag's named instructions besides "query" and "document".
    For inference: gradients do not flow through it.

    Args:
        name: a bundled name, a local folder (merged model or PEFT adapter), or a Hub id.
        steps: refinement steps of documents and, by default, of queries; None: the checkpoint's own.
        device: where the model runs; None: where Sentence Transformers would put it. It cannot be moved.
        dtype: "auto", "float32", "bfloat16" or "float16", or torch's.
        backend: None: what `Embedder.from_pretrained` takes.

    Raises:
        ValueError: an argument is refused, or the model cannot be loaded; says why.
    """

    config_file_name = "gircse_module.json"
    forward_kwargs: ClassVar[set[str]] = {"steps"}

    def __init__(
        self,
        name: str = "smollm2-135m",
        *,
        steps: int | None = None,
        device: str | None = None,
        dtype: str | torch.dtype = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        chosen: dict[str, Any] = {} if backend is None else {"backend": backend}
        device = device or get_device_name()
        try:
            self.embedder = Embedder.from_pretrained(
                name, steps=steps, device=device, dtype=str(dtype).removeprefix("torch."), **chosen
            )
        except GircseError as error:
            raise ValueError(str(error)) from error
        self.name = name
        self.tokenizer = self.embedder.tokenizer
        # Tells Sentence Transformers the device, and us when somebody tries to change it.
        self.register_buffer("_where", torch.empty(0, device=device), persistent=False)

    @property
    def max_seq_length(self) -> int:
        """Tokens of a rendered text at most; part of the vector space, so it cannot be set."""
        return self.embedder.spec.max_length

    def get_embedding_dimension(self) -> int:
        return self.embedder.dimension

    def on_model_ready(self, model: Any) -> None:
        """Fill in the prompts that the model does not bring, and check those that it does."""
        spec = self.embedder.spec
        for prompt in filter(None, model.prompts.values()):
            self._instruction(prompt)
        model.prompts["query"] = model.prompts.get("query") or prefix(spec.query_template, spec.default_instruction)
        for name, instruction in INSTRUCTIONS.items():
            model.prompts.setdefault(name, prefix(spec.query_template, instruction))

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, task: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Check texts and prompt; nothing is rendered or tokenised before `forward`.

        Raises:
            ValueError: a text or the prompt is refused.
        """
        if prompt and task == "document":
            raise ValueError("a document takes no prompt; it is embedded bare. Use encode_query for queries")
        instruction = self._instruction(prompt) if prompt else None
        if task == "query" and instruction is None:
            instruction = self.embedder.spec.default_instruction
        # Sorted and batched by now: the position would not be the caller's.
        return {"texts": [check_text(text) for text in inputs], "instruction": instruction}

    def forward(self, features: dict[str, Any], steps: Steps | None = None, **kwargs: Any) -> dict[str, Any]:
        """Adds "sentence_embedding", (n, d) float32, unit rows."""
        texts, instruction = features["texts"], features["instruction"]
        if instruction is not None:
            vectors = self.embedder.embed_queries(texts, instruction=instruction, steps=steps)
        elif steps is None:
            vectors = self.embedder.embed_documents(texts)
        else:
            raise ValueError("steps is for queries; documents take the steps that the model was made with")
        features["sentence_embedding"] = torch.from_numpy(vectors).to(self._where.device)
        return features

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write which checkpoint this is; one that came from a local folder is copied, over what was saved before.

        Raises:
            CheckpointError: it could not be written; what was saved before is whole.
        """
        folder, source, name = Path(output_path), Path(self.name).expanduser(), self.name
        if name not in BUNDLED and source.is_dir():  # as `load_checkpoint` understands a name
            name = _CHECKPOINT
            if (folder / name).resolve() != source.resolve():
                with replacing(folder, name) as fresh:
                    for path in (path for pattern in _FILES for path in source.glob(pattern)):
                        shutil.copy(path, fresh)
        config = {"name": name, "steps": self.embedder.spec.document_steps}
        (folder / self.config_file_name).write_text(json.dumps(config, indent=2), encoding="utf-8")

    @classmethod
    def load(
        cls, model_name_or_path: str, subfolder: str = "", *, model_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> Self:
        """What `save` wrote; `model_kwargs` are `device`, `dtype` and `backend`."""
        hub = {key: kwargs.get(key) for key in ("token", "cache_folder", "revision")}
        hub["local_files_only"] = bool(kwargs.get("local_files_only"))
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **hub)
        if config["name"] == _CHECKPOINT:
            config["name"] = load_dir_path(model_name_or_path, subfolder=str(Path(subfolder, _CHECKPOINT)), **hub)
        return cls(**config, **(model_kwargs or {}))

    def _instruction(self, prompt: str) -> str:
        head, tail = prefix(self.embedder.spec.query_template, "\0").split("\0")
        instruction = prompt.removeprefix(head).removesuffix(tail)
        if f"{head}{instruction}{tail}" != prompt or not instruction.strip():
            raise ValueError(f"the prompt {prompt!r} has to be {head + '<instruction>' + tail!r}")
        return instruction

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        moved = fn(self._where)
        if (moved.device, moved.dtype) != (self._where.device, self._where.dtype):
            raise ValueError(
                f"the model cannot be moved from {self._where.device} to {moved.device} {moved.dtype}; make it where "
                "it shall run: GircseModule(name, device=, dtype=), or model_kwargs={'device': ..., 'dtype': ...}"
            )
        return self
