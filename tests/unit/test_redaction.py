from __future__ import annotations

import copy
import pickle
import warnings
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gircse_rag.errors import GircseError, GircseWarning, InputError, StoreError
from gircse_rag.redaction import redact, split_credentials

SECRET = "S3CRET"
HOSTS = st.sampled_from(["localhost", "db.example.com", "10.0.0.1:6333", "[::1]:6333", "host:80"])
PATHS = st.sampled_from(["", "/", "/v1", "/a/b?q=1#part", "/@channel"])
# What people put between :// and @: percent-encoded as they should, or as it is.
PASSWORDS = st.text(st.characters(exclude_categories=["Z", "C"])).map(lambda text: f"{SECRET}{text}{SECRET}")
USERS = st.text(st.characters(exclude_categories=["Z", "C"], exclude_characters=":/?#@["))
AROUND = st.sampled_from(["", " ", "could not reach ", "('", "\n", " https://docs.example.com/@page "])


@given(AROUND, USERS, PASSWORDS, HOSTS, PATHS, AROUND, st.booleans())
def test_no_message_holds_a_password(
    before: str, user: str, password: str, host: str, path: str, after: str, encoded: bool
) -> None:
    login = f"{quote(user, safe='')}:{quote(password, safe='')}" if encoded else f"{user}:{password}"
    message = f"{before}http://{login}@{host}{path}{after}"
    shown = redact(message)
    assert SECRET not in shown and "***" in shown
    if path != "/@channel":
        assert f"http://***@{host}{path}" in shown
    assert redact(shown) == shown
    assert str(StoreError(message)) == shown and str(GircseWarning(message)) == shown


@given(USERS, PASSWORDS, HOSTS, PATHS.filter(lambda path: "@" not in path), st.booleans())
def test_a_url_is_split_into_address_and_login(user: str, password: str, host: str, path: str, encoded: bool) -> None:
    if encoded:
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    else:
        user, password = user.replace("%", ""), password.replace("%", "")
        login = f"{user}:{password}"
    assert split_credentials(f"https://{login}@{host}{path}") == (f"https://{host}{path}", (user, password))


@pytest.mark.parametrize(
    "text",
    [
        "http://localhost:6333",
        "https://www.youtube.com/@channel/video",
        "http://[::1]:6333/@page",
        "http://host:6333?to=a@b",
        "mail somebody@example.com or see https://example.com",
        "no url at all",
        "a@b://c",
        "",
    ],
)
def test_text_without_credentials_is_unchanged(text: str) -> None:
    assert redact(text) == text
    assert split_credentials(text) == (text, None)


def test_a_token_in_place_of_user_and_password_is_hidden() -> None:
    assert redact("https://token@host, then http://a:b@c") == "https://***@host, then http://***@c"
    assert split_credentials("https://token@host") == ("https://host", ("token", ""))


@pytest.mark.parametrize("text", ["://x:/" * 500_000 + "@", "://" * 500_000 + " @", "@://1:1/" * 300_000])
def test_hostile_text_is_read_once(text: str) -> None:
    """A search that starts again at every :// would take hours."""
    assert redact(text) == text


def test_errors_stay_redacted_in_copies_and_warnings() -> None:
    error = InputError("http://me:S3CRET@host is down", index=3)
    for copied in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert str(copied) == "http://***@host is down" and copied.index == 3
    assert SECRET not in repr(error) and isinstance(error, GircseError)
    with pytest.warns(GircseWarning, match=r"http://\*\*\*@host"):
        warnings.warn("http://me:S3CRET@host", GircseWarning, stacklevel=1)
