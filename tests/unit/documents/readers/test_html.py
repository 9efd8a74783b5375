from __future__ import annotations

from pathlib import Path

import pytest

from gircse_rag.documents.chunking import Chunker
from tests.unit.documents.readers import read_one, reason
from tests.unit.documents.test_chunking import SPEC, TOKENIZER

PAGE = """<!doctype html><html><head><title> The  guide </title><style>p {}</style></head><body>
<nav><a href="/">Home</a></nav>
<h1>Guide</h1><p>Open a_file with <code>open()</code> &amp; read it.</p>
<h2>Install</h2><ul><li>Run <b>it</b>.</li><li><a href="/wait">Wait</a>.</li></ul>
<script>alert("unseen")</script><img src="x.png" alt="A picture"><pre># no heading
x = 1</pre>
<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>
<h3>Deep</h3><p>At the bottom.</p></body></html>"""


def _write(folder: Path, page: str | bytes) -> Path:
    path = folder / "page.html"
    path.write_bytes(page if isinstance(page, bytes) else page.encode())
    return path


def test_a_page_becomes_markdown_with_its_title(tmp_path: Path) -> None:
    document = read_one(_write(tmp_path, PAGE))
    assert document.id == "page.html" and document.markdown and document.metadata == {"title": "The guide"}
    lines = [line for line in document.text.splitlines() if line]
    assert lines[:5] == ["# Guide", "Open a_file with `open()` & read it.", "## Install", "* Run **it**.", "* Wait."]
    assert "| 1 | 2 |" in lines and "A picture" in document.text
    for unseen in ("Home", "alert", "/wait", "x.png", "The guide", "p {}"):
        assert unseen not in document.text


def test_chunks_of_a_page_keep_their_heading_path(tmp_path: Path) -> None:
    chunks = Chunker(TOKENIZER, SPEC).cut(read_one(_write(tmp_path, PAGE)))
    assert chunks[-1].headings == ("Guide", "Install", "Deep")
    assert all("no heading" not in title for chunk in chunks for title in chunk.headings)


def test_only_the_main_element_is_read_if_there_is_one(tmp_path: Path) -> None:
    page = "<body><header>Banner</header><main><p>Words.</p></main><footer>Imprint</footer></body>"
    assert read_one(_write(tmp_path, page)).text == "Words."
    page = page.replace("main>", "article>")
    assert read_one(_write(tmp_path, page)).text.split() == ["Banner", "Words.", "Imprint"]
    assert read_one(_write(tmp_path, "<p>only a piece")).text == "only a piece"


@pytest.mark.parametrize(
    "page",
    [
        "<p>café 你</p>".encode(),
        b"\xef\xbb\xbf" + "<p>café 你</p>".encode(),
        "<p>café 你</p>".encode("utf-16"),
        '<meta charset="gb18030"><p>café 你</p>'.encode("gb18030"),
        b'<meta charset="latin-1">' + "<p>café 你</p>".encode(),  # the declaration is wrong: it is UTF-8
    ],
)
def test_encodings(tmp_path: Path, page: bytes) -> None:
    assert read_one(_write(tmp_path, page)).text == "café 你"


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (b"<p>caf\xe9</p>", "neither UTF-8 nor the declared encoding (none)"),
        (b'<meta charset="klingon"><p>caf\xe9</p>', "(klingon)"),
        (b"<p>a\0b</p>", "zero bytes"),
        (b"<body><script>draw()</script><div id=app></div></body>", "no text"),
        (b"", "no text"),
        (b"<div>" * 20_000 + b"deep", "nested too deep"),
        (b"<p>hello</p><![foo bar]>", "not readable as HTML: "),
        (b'<meta charset="undefined"><p>caf\xe9</p>', "the declared encoding (undefined)"),
        ("<ol start='²'><li>one</li></ol>".encode(), "not readable as HTML: invalid literal"),
        ("<table><tr><td colspan='²'>one</td></tr></table>".encode(), "not readable as HTML: invalid literal"),
    ],
)
def test_unreadable_pages_are_skipped_with_a_reason(tmp_path: Path, page: bytes, expected: str) -> None:
    assert expected in reason(_write(tmp_path, page))
