"""GircseModule: a SentenceTransformer module that embeds texts on its own, without a pooling module."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
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

_SUBFOLDER = "checkpoint"
_CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja")


class GircseModule(InputModule):
    """Embed texts with a GIRCSE checkpoint. Inference only: no gradients.

    A copy, also by pickle for another process (`encode` with a pool), loads the checkpoint again.

    A prompt is the query template up to its text: `Instruct: {instruction}\\nQuery:`. Other prompts are rejected.
    `encode_query` without a prompt uses the checkpoint's default instruction, `encode_document` rejects a prompt, and
    plain `encode` without a prompt embeds documents. `prompts` also has gircse-rag's named instructions.

    Args:
        name: a bundled name, a local folder (merged model or PEFT adapter), or a Hub id.
        steps: refinement steps for documents and, by default, queries. None: the checkpoint's default.
        device: the device the model stays on. None: the default of Sentence Transformers.
        dtype: "auto", "float32", "bfloat16" or "float16", or the torch dtype.
        backend: execution backend. None: the default of `Embedder.from_pretrained`.
        revision: branch, tag or commit of a Hub id. None: its main branch.
        dimensions: number of components that shortened vectors keep. None: all.

    Raises:
        ValueError: an argument is invalid, or the model cannot be loaded.
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
        revision: str | None = None,
        dimensions: int | None = None,
    ) -> None:
        super().__init__()
        self._settings: dict[str, Any] = {"steps": steps, "device": device or get_device_name(), "revision": revision}
        self._settings["dimensions"] = dimensions
        self._settings["dtype"] = str(dtype).removeprefix("torch.")
        if backend is not None:
            self._settings["backend"] = backend
        try:
            self.embedder = Embedder.from_pretrained(name, **self._settings)
        except GircseError as error:
            raise ValueError(str(error)) from error
        self.name = name
        self.tokenizer = self.embedder.tokenizer
        # Sentence Transformers reads its device here; `_apply` detects attempts to move the model by it.
        self.register_buffer("_device_marker", torch.empty(0, device=self._settings["device"]), persistent=False)

    def __reduce__(self) -> tuple[Callable[..., GircseModule], tuple[Any, ...]]:
        return partial(type(self), self.name, **self._settings), ()

    @property
    def max_seq_length(self) -> int:
        """Maximum tokens per rendered text. Read-only, because it is part of the vector space."""
        return self.embedder.spec.max_length

    def get_embedding_dimension(self) -> int:
        return self.embedder.dimension

    def on_model_ready(self, model: Any) -> None:
        """Check the model's prompts and add the missing ones."""
        spec = self.embedder.spec
        for prompt in filter(None, model.prompts.values()):
            self._parse_prompt(prompt)
        model.prompts["query"] = model.prompts.get("query") or prefix(spec.query_template, spec.default_instruction)
        for name, instruction in INSTRUCTIONS.items():
            model.prompts.setdefault(name, prefix(spec.query_template, instruction))

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, task: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Check texts and prompt. `forward` renders and tokenises them.

        Raises:
            ValueError: a text or the prompt is invalid.
        """
        if prompt and task == "document":
            raise ValueError("documents take no prompt; leave it out, or use encode_query for queries")
        instruction = self._parse_prompt(prompt) if prompt else None
        if task == "query" and instruction is None:
            instruction = self.embedder.spec.default_instruction
        # No index in errors: the texts are sorted and batched here, so it would not be the caller's position.
        return {"texts": [check_text(text) for text in inputs], "instruction": instruction}

    def forward(self, features: dict[str, Any], steps: Steps | None = None, **kwargs: Any) -> dict[str, Any]:
        """Add "sentence_embedding" to the features: (n, d) float32, unit rows."""
        texts, instruction = features["texts"], features["instruction"]
        if instruction is not None:
            vectors = self.embedder.embed_queries(texts, instruction=instruction, steps=steps)
        elif steps is None:
            vectors = self.embedder.embed_documents(texts)
        else:
            raise ValueError("steps is for queries; set the steps of documents with GircseModule(name, steps=)")
        features["sentence_embedding"] = torch.from_numpy(vectors).to(self._device_marker.device)
        return features

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the checkpoint's name, or a copy of the checkpoint if it is a local folder, replacing an earlier copy.

        Raises:
            CheckpointError: the copy could not be written; the earlier copy is intact.
        """
        folder, source, name = Path(output_path), Path(self.name).expanduser(), self.name
        if name not in BUNDLED and source.is_dir():  # same precedence as `load_checkpoint`
            name = _SUBFOLDER
            if (folder / name).resolve() != source.resolve():
                with replacing(folder, name) as fresh:
                    for path in (path for pattern in _CHECKPOINT_FILES for path in source.glob(pattern)):
                        shutil.copy(path, fresh)
        config = {"name": name, "steps": self.embedder.spec.document_steps}
        config |= {
            name: self._settings[name] for name in ("revision", "dimensions") if self._settings[name] is not None
        }
        (folder / self.config_file_name).write_text(json.dumps(config, indent=2), encoding="utf-8")

    @classmethod
    def load(
        cls, model_name_or_path: str, subfolder: str = "", *, model_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> Self:
        """Load a module written by `save`. `model_kwargs` may hold `device`, `dtype` and `backend`."""
        hub = {key: kwargs.get(key) for key in ("token", "cache_folder", "revision")}
        hub["local_files_only"] = bool(kwargs.get("local_files_only"))
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **hub)
        if config["name"] == _SUBFOLDER:
            config["name"] = load_dir_path(model_name_or_path, subfolder=str(Path(subfolder, _SUBFOLDER)), **hub)
        return cls(**config, **(model_kwargs or {}))

    def _parse_prompt(self, prompt: str) -> str:
        """The instruction in a rendered prompt, or of a name such as "python_code"."""
        if prompt in INSTRUCTIONS:
            return INSTRUCTIONS[prompt]
        head, tail = prefix(self.embedder.spec.query_template, "\0").split("\0")
        instruction = prompt.removeprefix(head).removesuffix(tail)
        if f"{head}{instruction}{tail}" != prompt or not instruction.strip():
            rendered = head + "<instruction>" + tail
            raise ValueError(
                f"invalid prompt {prompt!r}; it must be {rendered!r}, or a name that `gircse instructions` lists"
            )
        return instruction

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        moved = fn(self._device_marker)
        if (moved.device, moved.dtype) != (self._device_marker.device, self._device_marker.dtype):
            raise ValueError(
                f"the model cannot be moved from {self._device_marker.device} to {moved.device} {moved.dtype}; "
                "create it there: GircseModule(name, device=, dtype=), or model_kwargs={'device': ..., 'dtype': ...}"
            )
        return self
