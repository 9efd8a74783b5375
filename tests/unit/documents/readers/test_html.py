from __future__ import annotations

import html
import re
import time
from pathlib import Path

import pytest

from gircse_rag.documents.chunking import Chunker
from gircse_rag.documents.readers import read_documents
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


APART = (
    "header footer aside address form fieldset main center hgroup dialog search option button label output textarea "
    "object my-card unknown"
)


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
    ("label", "codec", "text"),
    [
        ("iso-8859-1", "cp1252", "“quoted”, it’s € 5"),  # noqa: RUF001
        ("ASCII", "cp1252", "“é”"),
        ("gb2312", "gbk", "朱镕基"),
        ("shift_jis", "cp932", "①髙"),
        ("ks_c_5601-1987", "cp949", "똠방각하"),
        ("iso-2022-jp", "iso-2022-jp", "日本語"),
    ],
)
def test_encoding_labels_mean_what_they_mean_to_browsers(tmp_path: Path, label: str, codec: str, text: str) -> None:
    for declaration in (
        f"<!-- <meta charset=klingon> --><meta charset='{label}'>",
        f'<meta http-equiv="Content-Type" content="text/html; charset={label}">',
        f'<?xml version="1.0" encoding="{label}"?>',
    ):
        assert read_one(_write(tmp_path, f"{declaration}<p>{text}</p>".encode(codec))).text == text


def test_end_tags_may_be_left_out(tmp_path: Path) -> None:
    paragraphs = read_one(_write(tmp_path, "<body>" + "".join(f"<p>para {number}\n" for number in range(3000)))).text
    assert paragraphs.split("\n\n") == [f"para {number}" for number in range(3000)]
    assert read_one(_write(tmp_path, "<ul><li>one<li>two<ul><li>deep</ul></ul>")).text == "* one\n* two\n  + deep"
    table = read_one(_write(tmp_path, "<table><tr><th>A<th>B<tr><td>1<td>2<tr><td>3")).text
    assert table == "| A | B |\n| --- | --- |\n| 1 | 2 |\n| 3 |"
    assert read_one(_write(tmp_path, "<dl><dt>term<dd>what it is</dl>")).text == "term\n\nwhat it is"


def test_text_after_the_end_tags_of_the_page_is_read(tmp_path: Path) -> None:
    assert read_one(_write(tmp_path, "<body>a</body>b</html><p>c</html><html><body>d")).text.split() == list("abcd")


@pytest.mark.parametrize(
    "page",
    [
        *(f"<{tag}>Alpha</{tag}><{tag}>Beta</{tag}>" for tag in APART.split()),
        "<details><summary>Alpha</summary>Beta</details>",
        "<fieldset><legend>Alpha</legend>Beta</fieldset>",
        '<img alt="Alpha"><img alt="Beta">',
        "Alpha<br>Beta",
        "Alpha<hr>Beta",
        "<h2>Alpha<div>Beta</div></h2>",
        "<pre><div>Alpha</div><div>Beta</div></pre>",
    ],
)
def test_elements_that_stand_apart_do_not_join_words(tmp_path: Path, page: str) -> None:
    assert re.findall("[A-Za-z]+", read_one(_write(tmp_path, page)).text) == ["Alpha", "Beta"]


def test_elements_inside_a_word_do_not_split_it(tmp_path: Path) -> None:
    page = "in<span>tell</span>i<a href=x>gi</a>b<wbr>le, soft&shy;ware<sub>2</sub>"
    assert read_one(_write(tmp_path, page)).text == "intelligible, software2"


def test_bogus_comments_are_no_text(tmp_path: Path) -> None:
    page = "<p><![if !list]>1.<![endif]> Item<?xml:namespace prefix = o /><?php echo 'secret' ?><!x></p>"
    page += "<p>end</p><![foo bar]>"
    assert read_one(_write(tmp_path, page)).text == "1\\. Item\n\nend"


def test_the_title_of_a_drawing_is_not_the_pages(tmp_path: Path) -> None:
    drawing = "<svg><title>Menu icon</title></svg>"
    assert read_one(_write(tmp_path, f"<body>{drawing}<p>text</p>")).metadata == {}
    assert read_one(_write(tmp_path, f"{drawing}<title>Pa&shy;ge</title><p>text</p>")).metadata == {"title": "Page"}


@pytest.mark.parametrize(
    "page",
    [
        "<p># make</p>",
        "<p><span>#</span> make</p>",
        "<p>Total<br>=====</p>",
        "<p>Total<br>-<b></b>-</p>",
        "<p>```</p>",
        "<p>~~~</p>",
        "<p>&lt;!-- x</p>",
        "<p>&lt;pre></p>",
        "<ul><li># item<li>===</ul>",
        "<img alt='\n\n# picture'>",
        "<textarea>\n# text</textarea>",
        "<pre>```\n# inside\n```\n# also</pre>",
        "<pre>&#13;```&#13;# inside</pre>",
        "<code>\n\n# inside</code>",
        "<table><tr><td># cell<br># cell</table>",
        "<hr>name: value<hr>",
        "<blockquote># quote<br># quote</blockquote>",
    ],
)
def test_text_of_the_page_becomes_no_structure(tmp_path: Path, page: str) -> None:
    document = read_one(_write(tmp_path, f"{page}<h1>Real # title #</h1><p>after</p>"))
    chunks = Chunker(TOKENIZER, SPEC, by="headings").cut(document)
    assert {chunk.headings for chunk in chunks[:-1]} == {()}
    assert chunks[-1].headings == (r"Real # title \#",) and "after" in chunks[-1].text


def test_text_within_a_line_is_not_escaped(tmp_path: Path) -> None:
    text = r"x_y * 2 [1] list[int] C:\dir `q` ~5 a|b <b> &c; # no"
    assert read_one(_write(tmp_path, f"<p>{html.escape(text)}</p>")).text == text


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("<ol start='²'><li>one</ol>", "1. one"),
        ("<ol start=7><li>a<li value=9>b<li value=x>c</ol>", "7. a\n9. b\n10. c"),
        ("<table><tr><td colspan='²'>a<td>b</table>", "| a | b |\n| --- | --- |"),
        ("<table><tr><td colspan=2>a|b<tr><td>c<td>d</table>", "| a\\|b |  |\n| --- | --- |\n| c | d |"),
        ("<ul><li><p>a<p>b<li>c<pre>x\ny</pre></ul><p>d", "* a\n\n  b\n* c\n\n  ```\n  x\n  y\n  ```\n\nd"),
        ("<ul><li>a<ol start=5><li>x<li>y</ol></ul>", "* a\n\n  5. x\n  6. y"),
        ("<blockquote>a<ul><li>b</ul></blockquote>c", "> a\n>\n> * b\n\nc"),
        ("a<br>b<br><br>c", "a  \nb\n\nc"),
        ("x<b> bold <i>it</i> </b>y <code>a`b</code><del>z</del>", "x **bold *it*** y `` a`b ``~~z~~"),
        ("<b>a<h2>T</h2><b>b</b></b>", "**a**\n\n## **T**\n\n**b**"),
        ("<pre><b>a</b>\n  <code>b</code><br>c\n</pre>", "```\na\n  b\nc\n```"),
        ("<q>a</q>", '"a"'),
    ],
)
def test_markdown_of_elements(tmp_path: Path, page: str, expected: str) -> None:
    assert read_one(_write(tmp_path, page)).text == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "tags", ["<div>", "<b>", "<p>", "<ul><li>", "<table><tr><td>", "<b>x<p>", "<a ", "<!--", "<li>x", "x</html>"]
)
def test_unclosed_tags_take_no_time(tmp_path: Path, tags: str) -> None:
    """512 KiB take 2 s at most (one AMD EPYC core); with quadratic time it would take minutes."""
    path = _write(tmp_path, tags * (2**19 // len(tags)))
    start = time.process_time()
    list(read_documents(path))
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (b"<p>caf\xe9</p>", "neither UTF-8 nor the declared encoding (none)"),
        (b'<meta charset="klingon"><p>caf\xe9</p>', "(klingon)"),
        (b"<p>a\0b</p>", "zero bytes"),
        (b"<body><script>draw()</script><div id=app></div></body>", "no text"),
        (b"", "no text"),
        (b"<div>" * 20_000 + b"deep", "nested too deep"),
        (b"<p " + b" ".join(b"a%d=1" % number for number in range(10_001)) + b">x", "more than 10,000 attributes"),
        (b"<blockquote>" * 1000 + b"<p>x" * 10_000, "its text is larger than 8 MiB"),
        (b'<meta charset="undefined"><p>caf\xe9</p>', "the declared encoding (undefined)"),
        (b'<meta charset="utf-16"><p>caf\xe9</p>', "the declared encoding (utf-16)"),
    ],
)
def test_unreadable_pages_are_skipped_with_a_reason(tmp_path: Path, page: bytes, expected: str) -> None:
    assert expected in reason(_write(tmp_path, page))
