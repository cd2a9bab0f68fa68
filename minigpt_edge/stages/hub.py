"""The hub (Hugging Face's or a mirror): is it there? Asked, and said, once per process."""

from __future__ import annotations

import functools
import os
import re
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # "org/name"
DEADLINE = 4.0  # seconds for the whole question, name lookup included
_TRUE = {"1", "ON", "YES", "TRUE"}


def endpoint() -> str:
    """The hub's address: $HF_ENDPOINT or the public one."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def unreachable(offline: bool = False) -> str | None:
    """Why the hub can't be used, in a few words, or None if it answers; within `DEADLINE` seconds."""
    if offline:
        return "working offline"
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(variable, "").upper() in _TRUE:
            return f"{variable} is set"
    return _ask(endpoint())


@functools.lru_cache(maxsize=8)
def _ask(url: str) -> str | None:
    # The system's name lookup has no timeout of its own, hence a thread that may be left behind.
    answer: list[str | None] = []
    thread = threading.Thread(target=lambda: answer.append(_head(url)), daemon=True)
    thread.start()
    thread.join(DEADLINE)
    reason = answer[0] if answer else f"no answer in {DEADLINE:.0f} s"
    if reason is not None:
        print(f"the hub {url} can't be reached ({reason}): using what is on this machine", file=sys.stderr)
    return reason


def _head(url: str) -> str | None:
    """None if `url` answers anything at all over HTTP (proxies are honoured), else the reason why not."""
    try:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "minigpt-edge"})
        with urllib.request.urlopen(request, timeout=3.0):
            return None
    except urllib.error.HTTPError as error:
        # A proxy that can't get through answers for the hub with one of these.
        return f"HTTP {error.code}" if error.code in (407, 502, 503, 504) else None
    except urllib.error.URLError as error:
        return "no answer in 3 s" if isinstance(error.reason, TimeoutError) else str(error.reason)
    except TimeoutError:
        return "no answer in 3 s"
    except (OSError, ValueError) as error:
        return str(error)


@contextmanager
def offline_libraries() -> Iterator[None]:
    """Make huggingface_hub and datasets use only their caches inside the block, even if already imported."""
    import datasets.config
    import huggingface_hub.constants

    places = [(huggingface_hub.constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE")]
    before = [getattr(module, name) for module, name in places]
    try:
        for module, name in places:
            setattr(module, name, True)
        yield
    finally:
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)
