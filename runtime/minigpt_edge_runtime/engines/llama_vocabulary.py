"""The tokenizer of a GGUF file in llama.cpp: of a loaded model, or of a file that may hold nothing else."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.engines.engine import start_token
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.formats.gguf_header import read_header
from minigpt_edge_runtime.formats.tokenizer_files import GGUF_TOKENS, gguf_chat_templates


def load_library() -> Any:
    """The llama_cpp module with its log silenced and its backend started.

    Raises:
        EdgeError: llama-cpp-python is not installed, or does not load.
    """
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise EdgeError(
            f"running a GGUF file needs llama-cpp-python ({error})",
            'pip install "minigpt-edge-runtime[gguf]"',
        ) from error
    from minigpt_edge_runtime.engines import llama_log

    llama_log.quiet()
    llama_cpp.llama_backend_init()
    return llama_cpp


class LlamaVocabulary:
    """The vocabulary of a model that llama.cpp has loaded.

    Args:
        library: the llama_cpp module.
        model: llama.cpp's pointer; the vocabulary lives as long as it.
        metadata: of the file.

    Attributes:
        vocab_size: tokens, those without a text too.
        chat_templates: the file's, by name.
    """

    def __init__(self, library: Any, model: Any, metadata: Mapping[str, Any]) -> None:
        self._lib, self._metadata = library, metadata
        self._vocab = library.llama_model_get_vocab(model)
        self.chat_templates = gguf_chat_templates(metadata)
        self.vocab_size = int(library.llama_vocab_n_tokens(self._vocab))
        self._pieces: dict[tuple[int, bool], bytes] = {}

    @property
    def adds_start(self) -> bool:
        """Whether llama.cpp puts BOS before every prompt."""
        return bool(self._lib.llama_vocab_get_add_bos(self._vocab))

    @property
    def special_texts(self) -> dict[str, str]:
        """As `Vocabulary.special_texts`: of what the file names, not of what llama.cpp would take for it."""
        ids = {name: self._metadata.get(f"tokenizer.ggml.{name}_id") for name in GGUF_TOKENS}
        return {
            name: self.piece(index, special=True).decode("utf-8", errors="replace")
            for name, index in ids.items()
            if isinstance(index, int) and 0 <= index < self.vocab_size
        }

    def tokenize(self, text: str, *, special: bool = False, whole: bool = False) -> list[int]:
        """Token ids; `special` reads special tokens, `whole` adds BOS and EOS as the file says."""
        data = text.encode("utf-8", errors="replace")
        room = len(data) + 8
        buffer = (self._lib.llama_token * room)()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), buffer, room, whole, special)
        if count < 0:
            raise EdgeError(f"llama.cpp can't tokenize a text of {len(data):,} bytes", "shorten the text")
        return list(buffer[:count])

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> bytes:
        """The bytes of tokens, without the space that the tokenizer puts before a text."""
        text = b"".join(self.piece(int(token), special=special) for token in tokens)
        pieces = self._metadata.get("tokenizer.ggml.model") == "llama"
        prefixed = pieces and self._metadata.get("tokenizer.ggml.add_space_prefix", True)
        return text.removeprefix(b" ") if prefixed else text

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes that one token adds; nothing for a special one unless `special`."""
        known = self._pieces.get((token, special))
        if known is None:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token ids must lie in 0..{self.vocab_size - 1}")
            size = 64
            while True:
                buffer = ctypes.create_string_buffer(size)
                count = self._lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
                if count >= 0:
                    break
                size = -count
            known = self._pieces[token, special] = buffer.raw[:count]
        return known

    def document_start(self, text: str | None = None) -> int:
        """As `Vocabulary.document_start`."""

        def find(written: str) -> int | None:
            ids = self.tokenize(written, special=True)
            return ids[0] if len(ids) == 1 else None

        return start_token(find, text, [self._role("bos"), self._role("eos")])

    def special_text(self, name: str) -> str:
        """As `Vocabulary.special_text`."""
        token = self._role(name)
        return "" if token is None else self.piece(token, special=True).decode("utf-8", errors="replace")

    def is_end(self, token: int) -> bool:
        """Whether llama.cpp ends a generation at a token."""
        if not self._states("eos") and token == self._lib.llama_vocab_eos(self._vocab):
            return False
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def _states(self, name: str) -> bool:
        """False where llama.cpp takes token 11 for BOS or EOS, since the file names none."""
        byte_level = self._metadata.get("tokenizer.ggml.model") == "gpt2"
        return not byte_level or f"tokenizer.ggml.{name}_token_id" in self._metadata

    def _role(self, name: str) -> int | None:
        token = int(getattr(self._lib, f"llama_vocab_{name}")(self._vocab))
        return token if token >= 0 and self._states(name) else None


@contextmanager
def open_vocabulary(path: Path) -> Iterator[LlamaVocabulary]:
    """The vocabulary of a GGUF file, which may hold no weights.

    Raises:
        EdgeError: llama.cpp can't read it.
    """
    library = load_library()
    parameters = library.llama_model_default_params()
    parameters.vocab_only = True
    model = library.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise EdgeError(f"llama.cpp can't load the vocabulary of {path}", "the file is damaged")
    try:
        yield LlamaVocabulary(library, model, read_header(path).metadata)
    finally:
        library.llama_model_free(model)
