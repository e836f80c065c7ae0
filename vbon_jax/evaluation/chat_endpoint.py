"""A chat-completions endpoint: one question, its answer, and the meaning of a failed request.

The key is read from the environment, is sent to the given host alone, over TLS unless that is this
machine, and is in no message. The connection is that of `huggingface_hub`.
"""

import email.utils
import os
import time
import urllib.parse
from typing import Any, NamedTuple

import huggingface_hub
from huggingface_hub import errors
from ml_collections import ConfigDict

from vbon_jax.types import InputError

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
RETRYABLE_STATUS = (408, 409, 425, 429)  # and all from 500 on
FATAL_STATUS = (*range(300, 400), 401, 402, 403, 404, 405)  # any question would fail like this
NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")  # the client's errors, by name


class Answer(NamedTuple):
    """An answer; its text is empty where it is not a completion."""

    text: str
    tokens_in: int | None = None  # as the endpoint counts them; None where it does not
    tokens_out: int | None = None


class Failure(NamedTuple):
    """No answer came back."""

    reason: str
    retryable: bool = True  # the same question may be sent again
    fatal: bool = False  # no question will be answered
    billable: bool = False  # it was sent, so that it may have been paid for
    retry_after: float | None = None  # seconds that the server asks to wait


class Endpoint:
    """The endpoint and the model of `config.llm_judge`.

    Raises InputError for a URL that is not one, a variable that is not set, and a key that would
    not be encrypted on its way.
    """

    def __init__(self, options: ConfigDict):
        self.options, self.url = options, completions_url(options.url)
        name = options.key_variable
        self._key = os.environ.get(name, "").strip() if name else ""
        if name and not (self._key.isascii() and self._key.isprintable() and self._key):
            raise InputError(
                f"llm_judge.key_variable={name!r} is not set or not a key; export {name}=YOUR-KEY"
            )
        parts = urllib.parse.urlsplit(self.url)
        if self._key and parts.scheme == "http" and parts.hostname not in LOCAL_HOSTS:
            raise InputError(
                f"llm_judge.url={options.url!r} would send the key in the clear; give https://"
            )

    def ask(self, messages: list[dict[str, str]]) -> Answer | Failure:
        """Send one question, once. A redirect is refused: questions and key are for one host."""
        options = self.options
        question = {"model": options.model, "messages": messages}
        question[options.limit_field] = options.answer_tokens
        if options.temperature >= 0:
            question["temperature"] = options.temperature
        try:
            response = huggingface_hub.get_session().post(
                self.url,
                json=question,
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                timeout=options.timeout_seconds,
                follow_redirects=False,
            )
        except errors.OfflineModeIsEnabled as error:
            return Failure(str(error), retryable=False, fatal=True)
        except errors.HTTPError as error:
            name = type(error).__name__
            return Failure(f"{name} {self._printable(str(error))}", billable=name not in NOT_SENT)
        return _answer(response) if response.is_success else self._refused(response)

    def _refused(self, response: Any) -> Failure:
        """The meaning of a status other than success."""
        status = response.status_code
        reason = f"HTTP {status}: {self._printable(response.text) or response.reason_phrase}"
        if status in RETRYABLE_STATUS or status >= 500:
            return Failure(reason, retry_after=retry_after(response.headers.get("Retry-After")))
        return Failure(reason, retryable=False, fatal=status in FATAL_STATUS)

    def _printable(self, text: str) -> str:
        """A text from elsewhere in one line of at most 300 characters, without the key."""
        text = text.replace(self._key, "KEY") if self._key else text
        words = " ".join(text[:2000].split())
        return "".join(c if c.isprintable() else "?" for c in words)[:300]


def completions_url(url: str) -> str:
    """The address of chat completions; `url` is that, or the API's (".../v1")."""
    try:
        parts = urllib.parse.urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is not a number
        valid = False
    if not valid:
        raise InputError(
            f"llm_judge.url={url!r}: give the API's address, such as https://api.openai.com/v1"
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return parts._replace(path=f"{path}/chat/completions").geturl()


def _answer(response: Any) -> Answer:
    """The parts of a completion; what is missing or of another type is left out."""
    try:
        completion = response.json()
        text, usage = completion["choices"][0]["message"]["content"], completion.get("usage")
    except (ValueError, LookupError, TypeError):
        return Answer("")
    counts = usage if isinstance(usage, dict) else {}
    tokens = (counts.get(name) for name in ("prompt_tokens", "completion_tokens"))
    whole = (n if type(n) is int and n >= 0 else None for n in tokens)
    return Answer(text if isinstance(text, str) else "", *whole)


def retry_after(header: str | None) -> float | None:
    """The seconds that a Retry-After header asks for, as a number or as a date; else None."""
    try:
        return max(0.0, float(header or "none"))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header or "").timestamp() - time.time())
    except ValueError:
        return None
