"""A loaded bundle as a Python object: text, chat and the likelihood of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from math import log
from pathlib import Path
from typing import Any, Self

from minigpt_edge_runtime.bundle.open import open_bundle
from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.errors import UsageError
from minigpt_edge_runtime.generate.chat import chat_ids
from minigpt_edge_runtime.generate.generate import Generation, Session, document_ids
from minigpt_edge_runtime.generate.sampling import Sampling

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text.

    Attributes:
        nll: negative log-likelihood of the whole text, in nats; the text begins a document.
        bytes: of the text in UTF-8.
        tokens: of the model that the text has.
    """

    nll: float
    bytes: int
    tokens: int

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for a byte of the text: comparable between models of any vocabulary."""
        return self.nll / self.bytes / log(2)


class Model:
    """A model file, loaded to generate and to score. Use it as a context manager, or call `close`.

    One thread at a time may use it, and one answer ends before the next begins. A prompt that begins like the
    one before is not computed twice.

    Args:
        path: a bundle's directory or zip file, a .gguf file, or a .onnx file.
        file: which of the bundle's model files; by default its first.
        context_length: tokens held at once; by default the model's own, at most 2,048.
        threads: CPU threads; by default all that this process may use.
        check: compare the bundle's files with the checksums in its manifest.

    Attributes:
        path: the model file.
        manifest: what the bundle says about itself, empty for a bare model file.

    Raises:
        EdgeError: it is no bundle or model file, is damaged or changed, or can't hold so long a context.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        file: str | None = None,
        context_length: int | None = None,
        threads: int | None = None,
        check: bool = True,
    ) -> None:
        bundle = open_bundle(path, file, check=check)
        self.path, self.manifest = bundle.model_path, bundle.manifest
        self._document_start = bundle.document_start
        self._settings = (context_length, threads)
        self._engines = ExitStack()
        self._session = Session(self._open())

    def generate(
        self, prompt: str, *, max_tokens: int = 256, stop: Sequence[str] = (), **sampling: Any
    ) -> str:
        """Text that goes on from `prompt`, which begins a document.

        Args:
            prompt: the beginning of a text, not an instruction.
            max_tokens: tokens to write at most.
            stop: texts before which to end.
            sampling: `temperature` (0 takes the likeliest token), `top_k`, `top_p`, `min_p`,
                `repeat_penalty`, `repeat_last` and `seed`, as `minigpt-edge run` has them.

        Raises:
            UsageError: a setting is outside its range.
            EdgeError: the prompt is too long for the context, or computing failed.
        """
        return "".join(self.stream(prompt, max_tokens=max_tokens, stop=stop, **sampling))

    def chat(
        self,
        messages: Messages,
        *,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        template: Mapping[str, Any] | None = None,
        **sampling: Any,
    ) -> str:
        """The answer to a conversation, by the model's own chat template.

        Args:
            messages: {"role": "system", "user" or "assistant", "content": text} each, the last a user's.
            max_tokens, stop: as for `generate`.
            template: what the template is given beside them, as `chat_ids` has it: {"tools": …},
                {"documents": …}, {"continue_final_message": True} where the last message is an answer's
                beginning, or variables of its own such as {"enable_thinking": False}.
            sampling: as for `generate`.

        Raises:
            ChatTemplateError: the model has no chat template, or the template refuses the messages.
            UsageError, EdgeError: as `generate`.
        """
        return "".join(self.stream(messages, max_tokens=max_tokens, stop=stop, template=template, **sampling))

    def stream(
        self,
        prompt: str | Messages,
        *,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        template: Mapping[str, Any] | None = None,
        **sampling: Any,
    ) -> Generation:
        """`generate` for a text, `chat` for messages, piece by piece.

        Returns:
            What to iterate over, once, for pieces of text. Its `cancel()` ends it early; afterwards
            `finish_reason` and `stats()` tell how it went.

        Raises:
            ChatTemplateError, UsageError, EdgeError: as `generate` and `chat`.
        """
        engine = self._session.engine
        if isinstance(prompt, str) and template is not None:
            raise UsageError("a text goes on without a chat template", "give messages, or no template")
        if isinstance(prompt, str):
            ids = document_ids(engine, prompt, self._document_start)
        else:
            ids = chat_ids(engine, prompt, **(template or {}))
        return Generation(self._session, ids, Sampling(**sampling), max_tokens, stop)

    def score(self, text: str) -> Score:
        """The likelihood of a text, in pieces where it is longer than the context.

        The first call loads the model a second time: scoring needs memory for the logits of 512 tokens.

        Raises:
            UsageError: the text is empty.
            EdgeError: the model's vocabulary loses bytes of it, or computing failed.
        """
        from minigpt_edge_runtime.scoring.held_out import Window, score_window

        if not text:
            raise UsageError("the text to score is empty", "give some text")
        window = Window(text, len(text.encode()), base_tokens=1)
        start = self._scorer.document_start(self._document_start)
        found = score_window(self._scorer, start, 0, window)
        return Score(found["nll"], found["bytes"], found["tokens"])

    @cached_property
    def _scorer(self) -> Engine:
        return self._open(logits_all=True)

    def _open(self, logits_all: bool = False) -> Engine:
        return self._engines.enter_context(open_engine(self.path, *self._settings, logits_all=logits_all))

    def close(self) -> None:
        """Free the model; it is of no use afterwards. Closing twice does no harm."""
        self._engines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
