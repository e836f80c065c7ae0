"""One question to a chat-completions endpoint (OpenAI's API, and whatever speaks it).

The standard library alone. What a failed request means is told apart by kind: whether it may be
sent again, and whether it may have been paid for. The key is read from the environment, is sent to
the given host only, over TLS unless that is this machine, and stands in no message.
"""

import email.utils
import http.client
import json
import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, NamedTuple

from vbon_jax.types import InputError

AT_MOST = 4_000_000  # bytes of an answer that are read
LONGEST_WAIT = 600.0  # seconds between two attempts; who asks for more is not waited for
HERE = ("localhost", "127.0.0.1", "::1")
AGAIN = (408, 409, 425, 429)  # of the statuses below 500, those that may pass


class Busy(Exception):
    """Not answered and not paid for; may be asked again, after `seconds` where the server says."""

    def __init__(self, reason: str, seconds: float | None = None):
        super().__init__(reason)
        self.seconds = seconds


class Lost(Exception):
    """Sent, and no whole answer came back: it may have been paid for. May be asked again."""


class Refused(Exception):
    """An answer that asking again will not change: to this question, or to `all` of them."""

    def __init__(self, reason: str, *, every: bool):
        super().__init__(reason)
        self.every = every


class Endpoint(NamedTuple):
    """Where questions go."""

    url: str  # of chat completions
    timeout_seconds: float
    key_variable: str = ""  # the environment variable with the API key; "" = none

    @property
    def key(self) -> str:
        """The API key, read when it is needed so that no record of this holds it."""
        return os.environ.get(self.key_variable, "").strip() if self.key_variable else ""


class Answer(NamedTuple):
    """What came back."""

    text: str
    tokens_in: int | None  # as the endpoint counts them; None where it does not say
    tokens_out: int | None


class _Stay(urllib.request.HTTPRedirectHandler):
    """Redirects are not followed: the key is for one host."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


def endpoint(url: str, *, key_variable: str, timeout_seconds: float) -> Endpoint:
    """A checked endpoint; `url` is that of the API (".../v1") or of its chat completions.

    Raises InputError for a URL that is none, a variable that is not set, and a key that would
    travel in the clear.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(
            f"llm_judge.url={url!r}: give the API's address, such as https://api.openai.com/v1"
        )
    if timeout_seconds <= 0:
        raise InputError(f"llm_judge.timeout_seconds={timeout_seconds}: give more than 0")
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions"
    made = Endpoint(parts._replace(path=path).geturl(), timeout_seconds, key_variable)
    if key_variable and not made.key:
        raise InputError(
            f"llm_judge.key_variable={key_variable!r}: the environment has no such variable; "
            f"export {key_variable}=YOUR-KEY"
        )
    if made.key and parts.scheme == "http" and parts.hostname not in HERE:
        raise InputError(f"llm_judge.url={url!r} would send the key in the clear; give https://")
    return made


def ask(to: Endpoint, body: dict[str, Any]) -> Answer:
    """Sends `body` once; raises Busy, Lost or Refused where no answer comes back."""
    headers = {"Content-Type": "application/json", "User-Agent": "vbon_jax"}
    if to.key:
        headers["Authorization"] = f"Bearer {to.key}"
    request = urllib.request.Request(to.url, json.dumps(body).encode(), headers, method="POST")
    handlers = [_Stay()]
    if urllib.parse.urlsplit(to.url).hostname in HERE:
        handlers.append(urllib.request.ProxyHandler({}))  # no proxy knows this machine
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(request, timeout=to.timeout_seconds) as response:
            text = response.read(AT_MOST)
    except urllib.error.HTTPError as error:
        with error:
            raise _failed(to, error) from None
    except urllib.error.URLError as error:  # before the whole request was sent
        raise Busy(f"no connection ({error.reason})") from None
    except (TimeoutError, OSError, http.client.HTTPException) as error:
        raise Lost(f"{type(error).__name__} {error}".strip()) from None
    return _answer(text)


def _failed(to: Endpoint, error: urllib.error.HTTPError) -> Exception:
    """What an HTTP status other than success means."""
    try:
        said = error.read(2000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        said = ""
    said = " ".join((said.replace(to.key, "KEY") if to.key else said).split())[:300]
    reason = f"HTTP {error.code}: {said or error.reason}"
    if error.code in AGAIN or error.code >= 500:
        return Busy(reason, retry_after(error.headers.get("Retry-After")))
    return Refused(reason, every=error.code in (401, 402, 403, 404, 405) or error.code < 400)


def _answer(text: bytes) -> Answer:
    """The parts of a completion; an answer that is none has no text, which nobody can read."""
    try:
        made = json.loads(text)
        said = made["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return Answer("", None, None)
    usage = made.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    counts = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
    whole = (n if isinstance(n, int) and not isinstance(n, bool) and n >= 0 else None
             for n in counts)  # fmt: skip
    return Answer(said if isinstance(said, str) else "", *whole)


def retry_after(header: str | None) -> float | None:
    """The seconds that a Retry-After header asks for, as a number or as a date; else None."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None


def wait_seconds(attempt: int, *, first: float, asked: float | None) -> float:
    """How long to wait before attempt 1, 2, ...: what the server asked for, else twice as long.

    With jitter of up to a half, so that requests that failed together do not return together.
    """
    wait = min(first * 2 ** (attempt - 1), LONGEST_WAIT) if asked is None else asked
    return wait * (1 + random.random() / 2)
