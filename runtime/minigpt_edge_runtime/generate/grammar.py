"""Answers that keep to a grammar: JSON under a schema, or what a grammar describes; by llguidance."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.errors import EdgeError, UsageError

if TYPE_CHECKING:
    import numpy as np

# Between the parts of a JSON text: a model that may write any whitespace may write nothing else.
_SPACE = r"( |\n[ ]{0,20})?"
_LEXER_STATES = 50_000  # that a grammar may need: a state has 1 to 2 KB
_MARK = "\x02"
_OPTIONS = "x-guidance"  # a key in a schema by which llguidance takes settings


class GrammarError(EdgeError):
    """A grammar is too much for its parser, or for the model's vocabulary."""


def load_library() -> Any:
    """The llguidance module.

    Raises:
        EdgeError: it is not installed.
    """
    try:
        import llguidance
    except (ImportError, OSError) as error:
        raise EdgeError(
            f"an answer under a grammar needs llguidance ({error})",
            'pip install "minigpt-edge-runtime[grammar]"',
        ) from error
    return llguidance


def json_rule(schema: Mapping[str, Any] | bool) -> str:
    """A schema as part of a Lark rule. Its references are its own: they begin at its root."""
    plain = {"type": "object"} if schema is True else schema
    settings = {_OPTIONS: {"whitespace_pattern": _SPACE}}
    return "%json " + json.dumps({**plain, **settings} if isinstance(plain, Mapping) else plain)


def text_rule(engine: Engine, text: str) -> str:
    """A fixed text as part of a Lark rule; special tokens in it are those tokens."""
    parts: list[str] = []
    plain: list[int] = []
    for token in [*engine.tokenize(text, special=True), None]:
        if token is not None and engine.piece(token):
            plain.append(token)
            continue
        if plain:
            parts.append(json.dumps(engine.detokenize(plain).decode(), ensure_ascii=False))
            plain = []
        if token is not None:
            parts.append(f"<[{token}]>")
    return " ".join(parts)


def from_gbnf(text: str) -> str:
    """A grammar in llama.cpp's notation, or in Lark's, as Lark.

    Raises:
        UsageError: it is neither.
        EdgeError: llguidance is not installed.
    """
    load_library()
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return str(any_to_lark(text))
    except Exception as error:  # the converter raises what it meets
        raise UsageError(f"the grammar can't be read ({error})", "check it with llama.cpp") from error


class Grammars:
    """What makes constraints for one engine. The first one takes the time to read its vocabulary."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def constraint(self, grammar: str) -> Constraint:
        """The constraint for one answer; a grammar takes up to a second, a copy of its constraint no time.

        Args:
            grammar: in llguidance's Lark.

        Raises:
            UsageError: the grammar, or a schema in it, is wrong, or has what is not supported.
            EdgeError: llguidance is not installed.
        """
        library = load_library()
        limits = library.LLParserLimits(verbose_errors=False, max_lexer_states=_LEXER_STATES)
        grammar = grammar.encode(errors="replace").decode()  # halves of surrogate pairs
        matcher = library.LLMatcher(
            self._tokenizer, library.LLMatcher.grammar_from_lark(grammar), log_level=0, limits=limits
        )
        if matcher.is_error():
            raise UsageError(_reason(matcher), "leave out what is not supported")
        return Constraint(matcher, self._engine.vocab_size)

    @cached_property
    def _tokenizer(self) -> Any:
        library = load_library()
        words = _Vocabulary(self._engine)
        return library.LLTokenizer(
            library.TokenizerWrapper(words), n_vocab=self._engine.vocab_size, eos_token=words.ends
        )


class Constraint:
    """Where an answer is in its grammar."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher, self._size = matcher, vocab_size

    def copy(self) -> Constraint:
        """Another one at the same place."""
        return Constraint(self._matcher.deep_copy(), self._size)

    def masked(self, logits: np.ndarray) -> np.ndarray:
        """Logits, float32 [vocab], without the tokens that can't come next; a copy.

        Raises:
            GrammarError: none can.
        """
        import numpy as np

        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, count=self._size, bitorder="little").view(bool)
        self._check()
        if not allowed.any():
            raise GrammarError("no token of this model fits the grammar", "ask for something simpler")
        return np.where(allowed, logits, np.float32(-np.inf))

    def accept(self, token: int) -> bool:
        """Go on by a token, one that `masked` has left.

        Returns:
            Whether the text is complete, and nothing can follow.

        Raises:
            GrammarError: the parser has reached its limits.
        """
        self._matcher.consume_token(token)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            message = f"the grammar can't go on ({_reason(self._matcher)})"
            raise GrammarError(message, "ask for something simpler")


class _Vocabulary:
    """An engine's tokens as llguidance asks for them."""

    bos_token_id = None

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        tokens = range(engine.vocab_size)
        pieces = [engine.piece(token) for token in tokens]
        self.special_token_ids = [token for token in tokens if not pieces[token]]
        self.tokens = [
            piece or engine.detokenize([token], special=True) for token, piece in enumerate(pieces)
        ]
        ends = [token for token in tokens if engine.is_end(token)]
        if not ends:
            raise EdgeError("this model has no token that ends an answer", "ask for plain text")
        self.eos_token_id, self.ends = ends[0], ends

    def __call__(self, text: str | bytes) -> list[int]:
        """The tokens of text in the middle of an answer."""
        written = text if isinstance(text, str) else text.decode(errors="replace")
        tokens = self._engine.tokenize(written)
        if b"".join(map(self._engine.piece, tokens)) == written.encode():
            return tokens
        # A SentencePiece tokenizer writes a space first: before a byte here, which joins no other token.
        marked = self._engine.tokenize(_MARK + written)
        pieces = [self._engine.piece(token) for token in marked]
        return marked[pieces.index(_MARK.encode()) + 1 :] if _MARK.encode() in pieces else tokens


def _reason(matcher: Any) -> str:
    """Why a matcher failed, in one line, without the place in a grammar that the user has not written."""
    text = str(matcher.get_error()).replace("<non-verbose/>", "")
    text = re.sub(r"^at \d+\(\d+\): |\n *\d+ \|.*", "", text, flags=re.DOTALL)
    return " ".join(text.split())[:300]
