"""Text out of tokens' bytes, as it can be shown: whole characters only, stop strings never."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns bytes that come token by token into text, and ends it before the first stop string.

    Bytes that are no UTF-8 become U+FFFD.

    Attributes:
        length: characters decoded so far, shown or not.
        stopped: whether a stop string was found.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = [stop for stop in stops if stop]
        self._pending = ""
        self.length = 0
        self.stopped = False

    def push(self, data: bytes, *, last: bool = False) -> str:
        """Add bytes; return the text that can be shown now. What may become a stop string waits.

        After a stop string `stopped` is true and nothing more is shown. `last` lets go of what waits.
        """
        if self.stopped:
            return ""
        text = self._decoder.decode(data, last)
        self.length += len(text)
        self._pending += text
        found = [at for at in (self._pending.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            return self._pending[: min(found)]
        keep = 0 if last else max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._pending) - keep
        shown, self._pending = self._pending[:cut], self._pending[cut:]
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the pending text that begins `stop`."""
        longest = min(len(stop) - 1, len(self._pending))
        return next((n for n in range(longest, 0, -1) if self._pending.endswith(stop[:n])), 0)
