"""One of an answer's choices, while it is made."""

from __future__ import annotations

from dataclasses import dataclass

from minigpt_edge_runtime.generate.generate import Generation
from minigpt_edge_runtime.generate.logprobs import TokenLogprob
from minigpt_edge_runtime.serve.tool_calls import Call, CallFormat, CallStream


@dataclass(frozen=True)
class Plan:
    """What makes a choice.

    Attributes:
        generation: not yet begun.
        format: how calls are written in it, None if there are none.
        several: whether it may have more than one call.
        echo: the text that it begins with.
        hidden: tokens at the prompt's beginning that are not told of.
    """

    generation: Generation
    format: CallFormat | None = None
    several: bool = True
    echo: str = ""
    hidden: int = 0


class Choice:
    """Turns a generation's pieces into content, calls and logprobs.

    Attributes:
        calls: of functions, once it has ended.
    """

    def __init__(self, index: int, plan: Plan) -> None:
        self.index, self.generation, self.echo = index, plan.generation, plan.echo
        self.calls: list[Call] = []
        self._calls = CallStream(plan.format, plan.several) if plan.format else None
        self._unsaid = plan.echo
        self._length = 0  # of the pieces so far
        self._asked, self._said = plan.hidden, 0  # tokens told so far

    def push(self, piece: str) -> str:
        """Add a piece; the content that can be shown."""
        self._length += len(piece)
        content = self._calls.push(piece) if self._calls else piece
        content, self._unsaid = self._unsaid + content, ""
        return content

    def end(self) -> str:
        """The rest of the content."""
        rest, self._unsaid = self._unsaid, ""
        if self._calls:
            more, self.calls = self._calls.end()
            rest += more
        return rest

    def logprobs(self, ended: bool = False) -> tuple[list[TokenLogprob], list[TokenLogprob]]:
        """The prompt's and the answer's tokens that were not told yet, as far as their text has come.

        Args:
            ended: whether nothing more comes: a stop string cuts tokens off, otherwise all are part of it.
        """
        asked, said = self.generation.asked[self._asked :], self.generation.said[self._said :]
        if not ended or self.generation.finish_reason == "stop":
            said = [token for token in said if token.start < self._length]
        self._asked += len(asked)
        self._said += len(said)
        return asked, said
