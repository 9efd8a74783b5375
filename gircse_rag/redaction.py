"""Credentials in URLs, such as http://user:password@host: take them out of text that people or logs see."""

from __future__ import annotations

import re
from urllib.parse import unquote

# Start of a URL's authority that holds credentials. An @ before the path ends them. So does an @ further on if there is
# no valid port before the path: then the password has a slash in it that should have been %2F.
_CREDENTIALS = re.compile(r"[^/?#]*@|[^/?#@:\[]*:(?!\d*(?:[/?#]|$))")
_HIDDEN = "***"


def redact(text: str) -> str:
    """Replace the user and password of every URL in `text` by ***. Takes linear time.

    After credentials, text up to the last @ before the next space is hidden too: a password may contain an @.
    """
    return re.sub(r"\S+", lambda match: _redact_word(match[0]), text) if "@" in text else text


def split_credentials(url: str) -> tuple[str, tuple[str, str] | None]:
    """Split a URL into the URL without credentials, and (user, password), decoded, or None."""
    found = _find_credentials(url)
    if found is None:
        return url, None
    user, _, password = url[found].partition(":")
    return url[: found.start] + url[found.stop + 1 :], (unquote(user), unquote(password))


def _redact_word(word: str) -> str:
    found = _find_credentials(word)
    return word if found is None else word[: found.start] + _HIDDEN + word[found.stop :]


def _find_credentials(word: str) -> slice | None:
    """Where the credentials of the first URL with some are; they end before the last @."""
    end = word.rfind("@")
    start = word.find("://")
    while 0 <= start < end:
        start += 3
        if _CREDENTIALS.match(word, start):
            return slice(start, end)
        start = word.find("://", start)
    return None
