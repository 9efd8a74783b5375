from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gircse_rag.documents.nesting import nesting_depth


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("", 0),
        ("x = 1", 0),
        ("f(a)(b)", 1),
        ("f(a, [b, {c: d}], e)", 3),
        ("()" * 500, 1),
        ("( " * 500 + " )" * 500, 500),
        ("[ " * 500, 0),
        ("] " * 500 + "()", 1),
        ("{ '(' [ '(' ] '(' }", 2),
        ("{ " * 9 + "( " * 9 + "} " * 9, 9),
        ("if (a) { b } else { c }", 1),
        ("if (a) b; " + "else if (a) b; " * 10, 11),
        ("if (a) b; else\n\tif (a) { if (b) c; else if (b) { d } }", 1 + 1 + 1 + 1),
        ("if (a) b; else if (a) b;\n" * 100, 2),
        ("{ if (a) b; else if (a) b; } " * 100, 3),
        ("an else iffy (word) and elsewhere if (not)", 1),
    ],
)
def test_nesting_depth(text: str, levels: int) -> None:
    assert nesting_depth(text) == levels


TREE = st.recursive(st.just(""), lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=30)


@given(TREE, st.data())
def test_only_closed_brackets_count(tree: object, data: st.DataObject) -> None:
    def code(node: object) -> str:
        if not isinstance(node, list):
            return "x"
        first, last = data.draw(st.sampled_from([("(", ")"), ("{", "}")]))
        return f"{first} [ {' '.join(code(each) for each in node)} {last}"  # the [ is never closed

    def depth(node: object) -> int:
        return 1 + max(depth(each) for each in node) if isinstance(node, list) else 0

    assert nesting_depth(code(tree)) == depth(tree)
