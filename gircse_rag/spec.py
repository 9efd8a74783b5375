"""EmbeddingSpec: everything that determines the vector space, and its fingerprint.

Vectors are comparable when their specs have the same fingerprint. The fingerprint excludes what a query may choose: its
instruction and its own number of steps. It also excludes the dtype, which changes vectors only by rounding; a different
dtype causes a warning.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from gircse_rag.errors import GircseWarning, InputError, SpecMismatchError, plural
from gircse_rag.prompts import DEFAULT_INSTRUCTION, DOCUMENT_TEMPLATE, QUERY_TEMPLATE, check_template

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Decoder families (transformers' `model_type`) that loading, the engine and training all support."""
POOLINGS = ("mean", "mean_with_prompt")
"""What z_K averages: "mean" h_1..h_K (GIRCSE), "mean_with_prompt" h_0..h_{K-1} (LaSER)."""
DEFAULT_STEPS = 5
MAX_STEPS = 256

# Names and revisions are for people; the hashes determine the space. A moved folder is still the same model, and so is
# a later commit that changes only its README.
_FIELD_TYPES = {"str": (str,), "int": (int,), "float": (float,), "bool": (bool,), "str | None": (str, type(None))}
_NOT_IN_FINGERPRINT = frozenset(
    {"base_model", "adapter", "default_instruction", "dtype", "base_revision", "adapter_revision"}
)


@dataclass(frozen=True, kw_only=True)
class EmbeddingSpec:
    """Everything that determines the vector space.

    Attributes:
        base_model: name, folder or Hub id of the base model, for people.
        base_hash: sha256 of its weights and of the configuration values that change the arithmetic.
        tokenizer_hash: sha256 of the tokenizer's definition.
        adapter: name, folder or Hub id of the LoRA adapter, or None.
        adapter_hash: sha256 of its weights and configuration, or None.
        dimension: d, the length of a vector: the model's, or less if its vectors are shortened.
        rotation_hash: sha256 of the rotation that shortened vectors had before the cut; None for whole vectors.
        temperature: tau of the soft token's softmax.
        pooling: "mean" over h_1..h_K after K soft tokens (GIRCSE), or "mean_with_prompt" over h_0..h_{K-1} after K - 1
            soft tokens (LaSER); h_0 is the prompt's last state.
        normalize: whether vectors have unit length; always true, stated for readers of the spec.
        query_template: for queries and symmetric texts; contains `{instruction}` and ends in `{text}`.
        document_template: ends in `{text}`.
        suffix: appended to every rendered text before tokenising and kept under truncation; "" for none.
        max_length: maximum prompt tokens, including the suffix; longer texts are cut at the body's end.
        document_steps: K for documents, and for queries by default.
        default_instruction: instruction of a query that has none.
        dtype: dtype of the weights that computed the vectors ("float32", "bfloat16", "float16").
        base_revision, adapter_revision: commit on the Hugging Face Hub that the files came from, or None for other
            files. Provenance only: loading them again by this commit gives the same hashes.
    """

    base_model: str
    base_hash: str
    tokenizer_hash: str
    dimension: int
    rotation_hash: str | None = None
    adapter: str | None = None
    adapter_hash: str | None = None
    temperature: float = 1.0
    pooling: str = "mean"
    normalize: bool = True
    query_template: str = QUERY_TEMPLATE
    document_template: str = DOCUMENT_TEMPLATE
    suffix: str = ""
    max_length: int = 512
    document_steps: int = DEFAULT_STEPS
    default_instruction: str = DEFAULT_INSTRUCTION
    dtype: str = "float32"
    base_revision: str | None = None
    adapter_revision: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.temperature, int):  # 1 and 1.0 are the same space and must have the same fingerprint
            object.__setattr__(self, "temperature", float(self.temperature))
        for field in fields(self):
            value, kind = getattr(self, field.name), _FIELD_TYPES[str(field.type)]
            if not isinstance(value, kind) or (isinstance(value, bool) and bool not in kind):
                raise InputError(f"{field.name} must be {field.type}, not {value!r}")
        check_template(self.query_template)
        check_template(self.document_template)
        check_steps(self.document_steps)
        if "{instruction}" not in self.query_template:
            raise InputError(f"query_template {self.query_template!r} has no {{instruction}}")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature must be above 0 and finite, not {self.temperature}")
        if self.max_length < 1:
            raise InputError(f"max_length must be at least 1, not {self.max_length}")
        if self.pooling not in POOLINGS:
            raise InputError(
                f"pooling {self.pooling!r} is unknown to this version, which knows 'mean' (GIRCSE, h_1..h_K) and "
                "'mean_with_prompt' (LaSER, h_0..h_K-1); correct it, or upgrade gircse-rag if a newer version wrote it"
            )
        if not self.normalize:
            raise InputError("normalize must be True: every vector has unit length")

    @property
    def fingerprint(self) -> str:
        """32 hex digits; equal exactly when vectors are comparable."""
        space = {name: value for name, value in self.to_dict().items() if name not in _NOT_IN_FINGERPRINT}
        if self.rotation_hash is None:  # as before there were rotations
            del space["rotation_hash"]
        return hashlib.sha256(json.dumps(space, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def pools_prompt(self) -> bool:
        """Whether h_0, the prompt's last state, is pooled."""
        return self.pooling == "mean_with_prompt"

    def num_soft_tokens(self, steps: int) -> int:
        """Number of soft tokens that K = `steps` pooled states need."""
        return steps - self.pools_prompt

    def shortened(self, dimension: int, rotation_hash: str | None = None) -> EmbeddingSpec:
        """The spec of the same vectors cut to `dimension` components, rotated before: a space of its own.

        Raises:
            InputError: `dimension` is not an integer from 1 to this spec's.
        """
        if isinstance(dimension, bool) or not isinstance(dimension, int) or not 1 <= dimension <= self.dimension:
            raise InputError(
                f"dimensions must be an integer from 1 to {self.dimension}, the model's own, not {dimension!r}"
            )
        if dimension == self.dimension:
            return self
        return replace(self, dimension=dimension, rotation_hash=self.rotation_hash or rotation_hash)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EmbeddingSpec:
        """Create a spec from the values of `to_dict`.

        Raises:
            InputError: a field is missing or unknown to this version.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise InputError(
                f"unknown spec fields {unknown}: written by a newer gircse-rag? This version knows {sorted(known)}"
            )
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError(f"the spec is incomplete: {error}") from error

    def check_matches(
        self, other: EmbeddingSpec, *, ours: str = "this embedder", theirs: str = "the collection"
    ) -> None:
        """Check that vectors of both specs are comparable; a different dtype only warns.

        Raises:
            SpecMismatchError: they are not; names every field that differs, with both values.
        """
        if self.fingerprint != other.fingerprint:
            mine, others = self.to_dict(), other.to_dict()
            differing = [name for name in mine if name not in _NOT_IN_FINGERPRINT and mine[name] != others[name]]
            lines = [f"  {name}: {ours} {mine[name]!r}, {theirs} {others[name]!r}" for name in differing]
            raise SpecMismatchError(
                f"{ours} ({self.describe()}) and {theirs} ({other.describe()}) embed into different vector spaces:\n"
                + "\n".join(lines)
                + "\nuse the model that made the vectors, or embed the documents again into a new collection"
            )
        if self.dtype != other.dtype:
            warnings.warn(
                f"{ours} computes in {self.dtype}, {theirs} was made in {other.dtype}: similarities differ slightly",
                GircseWarning,
                stacklevel=3,
            )

    def describe(self) -> str:
        """One line for people: model, adapter, steps and fingerprint."""
        model = self.base_model if self.adapter is None else f"{self.base_model} + {self.adapter}"
        return f"{model}, {plural(self.document_steps, 'step')}, fingerprint {self.fingerprint[:12]}"


def check_steps(steps: int) -> None:
    """Refuse anything but an integer from 1 to MAX_STEPS as a number of refinement steps.

    Raises:
        InputError: `steps` is not such an integer.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise InputError(f"steps must be an integer from 1 to {MAX_STEPS}, not {steps!r}; the paper uses 5 to 20")
