"""BESTRUN_NOTIFY=URL: one POST of what `--json` prints, when a run or a sweep has ended.

The address may be a secret, as those of chats are: it stands in no file and no message, those of urllib's errors among
them. Whether the POST arrives changes nothing, and it takes no longer than SECONDS.
"""

import base64
import json
import os
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from ..environment import NOTIFY

SECONDS = 5.0


def doubt() -> str | None:
    """What is wrong with the address, for the start of a run; None where nothing is, or there is none."""
    address = os.environ.get(NOTIFY)
    if not address or _is_usable(address):
        return None
    return f"{NOTIFY}: is no http(s) address, nobody will be told of the end; type {NOTIFY}=https://HOST/PATH"


def notify(result: Mapping[str, Any]) -> str | None:
    """Send the result, if somebody is to be told.

    Returns:
        Why it was not taken, in words without the address; None where it was, or nobody is to be told.
    """
    address = os.environ.get(NOTIFY)
    if not address:
        return None
    if not _is_usable(address):
        return doubt()
    answers: list[str | None] = []
    body = json.dumps(result).encode()
    # In a thread: a time-out of urllib is for each read, and looking up a host's name has none
    thread = threading.Thread(target=lambda: answers.append(_post(address, body)), name="notify", daemon=True)
    thread.start()
    thread.join(SECONDS)
    why = answers[0] if answers else f"no answer within {SECONDS:.0f} s"
    return f"{NOTIFY}: the result was not taken: {why}" if why else None


def _is_usable(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _post(address: str, body: bytes) -> str | None:
    """Why it was not taken; None where it was. Redirects are not followed: the result is for this address alone."""
    from urllib.error import HTTPError, URLError
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class Stay(HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    parts = urlsplit(address)
    user, _, host = parts.netloc.rpartition("@")
    bare = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    request = Request(bare, data=body, method="POST")
    request.add_header("Content-Type", "application/json")
    request.add_header("User-Agent", "bestrun")
    if user:
        request.add_header("Authorization", f"Basic {base64.b64encode(unquote(user).encode()).decode()}")
    try:
        with build_opener(Stay).open(request, timeout=SECONDS):
            return None
    except HTTPError as error:
        error.close()
        return f"HTTP {error.code}"
    except URLError as error:
        return type(error.reason).__name__
    except Exception as error:  # of http.client, whose words may hold the address
        return type(error).__name__
