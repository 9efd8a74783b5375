"""Programming languages cut at definitions: their file suffixes and tree-sitter grammars (extra `code`)."""

from __future__ import annotations

from typing import Any

from gircse_rag.errors import require

# Language -> (module of the grammar, function in that module, file suffixes)
_GRAMMARS = {
    "bash": ("tree_sitter_bash", "language", (".sh", ".bash")),
    "c": ("tree_sitter_c", "language", (".c", ".h")),
    "c_sharp": ("tree_sitter_c_sharp", "language", (".cs",)),
    "cpp": ("tree_sitter_cpp", "language", (".cpp", ".cc", ".cxx", ".hpp")),
    "go": ("tree_sitter_go", "language", (".go",)),
    "java": ("tree_sitter_java", "language", (".java",)),
    "javascript": ("tree_sitter_javascript", "language", (".js", ".mjs", ".jsx")),
    "php": ("tree_sitter_php", "language_php", (".php",)),
    "python": ("tree_sitter_python", "language", (".py", ".pyi")),
    "ruby": ("tree_sitter_ruby", "language", (".rb",)),
    "rust": ("tree_sitter_rust", "language", (".rs",)),
    "tsx": ("tree_sitter_typescript", "language_tsx", (".tsx",)),
    "typescript": ("tree_sitter_typescript", "language_typescript", (".ts",)),
}
LANGUAGES = tuple(_GRAMMARS)
LANGUAGE_OF_SUFFIX = {suffix: name for name, (_, _, suffixes) in _GRAMMARS.items() for suffix in suffixes}


def grammar(language: str) -> Any:
    """Load the grammar of one of `LANGUAGES`, in the form `CodeSplitter` takes.

    Raises:
        MissingExtraError: the grammar is not installed.
    """
    module, function, _ = _GRAMMARS[language]
    return getattr(require(module, "code"), function)()
