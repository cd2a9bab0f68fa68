"""GGUF files on llama.cpp, through llama-cpp-python's low-level interface.

The high-level `Llama` copies the whole vocabulary's logits per token and fails in its destructor when the
interpreter ends first; here logits are views of llama.cpp's own memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minigpt_edge_runtime.engines.batches import Row, packs, runs
from minigpt_edge_runtime.engines.engine import DEFAULT_CONTEXT, Engine, Fork, context_of
from minigpt_edge_runtime.engines.llama_vocabulary import LlamaVocabulary, load_library
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.formats.gguf_header import GgufHeader, read_header

BATCH = 512  # tokens in one call of llama_decode, llama.cpp's own default ubatch
SEQUENCES = 64  # continuations that are evaluated together


class LlamaEngine(Engine):
    """One model and one sequence in llama.cpp."""

    def __init__(self, path: Path, context_length: int | None, threads: int, logits_all: bool) -> None:
        self._model: Any = None
        self._context: Any = None
        self._batch: Any = None
        self.header = _checked_header(path)
        trained = int(self.header.of_architecture("context_length", 0)) or DEFAULT_CONTEXT
        self.context_length = context_of(path.name, trained, context_length)
        self._lib = load_library()
        self.logits_all = logits_all
        try:
            self._load(path)
            self._start(threads)
        except BaseException:
            self.close()
            raise

    def _load(self, path: Path) -> None:
        lib = self._lib
        parameters = lib.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.use_extra_bufts = self.extra_buffers = not _amx_is_broken(lib)
        self._model = lib.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise _failed(
                f"llama.cpp can't load {path}", "the file is damaged, or its architecture is unsupported"
            )
        if lib.llama_model_has_encoder(self._model) or not lib.llama_model_has_decoder(self._model):
            raise EdgeError(f"{path} is not a text-generating decoder", "give a decoder-only language model")
        self.text = LlamaVocabulary(lib, self._model, self.header.metadata)
        self.vocab_size = self.text.vocab_size
        if not self.vocab_size:
            raise EdgeError(f"{path} has no vocabulary", "export the model together with its tokenizer")

    def _start(self, threads: int) -> None:
        lib = self._lib
        batch = min(BATCH, self.context_length)
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = self.context_length
        parameters.n_batch = parameters.n_ubatch = batch
        parameters.n_outputs_max = batch if self.logits_all else 1
        # A batch must have room for all sequences, or llama.cpp aborts.
        self._sequences = min(SEQUENCES, batch) if self.logits_all else 1
        parameters.n_seq_max, parameters.kv_unified = self._sequences, True
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.no_perf = True
        self._context = lib.llama_init_from_model(self._model, parameters)
        if not self._context:
            hint = "use a smaller context, or free some memory"
            raise _failed(f"llama.cpp can't make a context of {self.context_length:,} tokens", hint)
        self._memory = lib.llama_get_memory(self._context)
        self._batch = lib.llama_batch_init(batch, 0, self._sequences)
        view = np.ctypeslib.as_array
        self._tokens, self._positions = view(self._batch.token, (batch,)), view(self._batch.pos, (batch,))
        self._wanted = view(self._batch.logits, (batch,))
        self._sequence_ids = [view(self._batch.seq_id[i], (self._sequences,)) for i in range(batch)]
        for i in range(batch):
            self._batch.n_seq_id[i] = 1
            self._sequence_ids[i][0] = 0

    def eval(self, tokens: Sequence[int]) -> np.ndarray:
        if not len(tokens):
            raise ValueError("no tokens to evaluate")
        self._check_ids(tokens)
        self._check_room(len(tokens))
        size = len(self._tokens)
        for start in range(0, len(tokens), size):
            piece = tokens[start : start + size]
            self._wanted[: len(piece)] = 0
            if start + size >= len(tokens):
                self._wanted[len(piece) - 1] = 1
            self._decode(piece)
        pointer = self._lib.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, (self.vocab_size,))

    def score(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        self._begin_scoring()
        self._check_ids(tokens)
        self._check_room(len(tokens))
        size = len(self._tokens)
        for start in range(0, len(tokens), size):
            piece = tokens[start : start + size]
            self._wanted[: len(piece)] = 1
            self._decode(piece)
            yield np.ctypeslib.as_array(
                self._lib.llama_get_logits(self._context), (len(piece), self.vocab_size)
            )

    def forks(self, forks: Sequence[Fork]) -> Iterator[tuple[int, int, int, np.ndarray]]:
        self._begin_scoring()
        for fork in forks:
            for text in (fork.beginning, *fork.branches):
                self._check_ids(text)
            self._check_room(len(fork.beginning) + max(0, *(len(branch) - 1 for branch in fork.branches), 0))
        size = len(self._tokens)
        for rows in packs(forks, self._sequences, self.context_length):
            try:
                for start in range(0, len(rows), size):
                    piece = rows[start : start + size]
                    yield from runs(piece, self._decode_rows(piece))
            finally:
                self._lib.llama_memory_clear(self._memory, False)

    def _decode_rows(self, rows: Sequence[Row]) -> np.ndarray:
        """Logits [n, vocab] of the rows that predict something."""
        count = len(rows)
        self._tokens[:count] = [row.token for row in rows]
        self._positions[:count] = [row.position for row in rows]
        self._wanted[:count] = wanted = [bool(row.predicts) for row in rows]
        for at, row in enumerate(rows):
            self._batch.n_seq_id[at] = len(row.sequences)
            self._sequence_ids[at][: len(row.sequences)] = row.sequences
        self._batch.n_tokens = count
        code = self._lib.llama_decode(self._context, self._batch)
        for at in range(count):
            self._batch.n_seq_id[at] = 1
            self._sequence_ids[at][0] = 0
        if code:
            raise _failed(f"llama.cpp stopped with code {code} in a branch", "use a longer context")
        if not any(wanted):
            return np.empty((0, self.vocab_size), np.float32)
        return np.ctypeslib.as_array(
            self._lib.llama_get_logits(self._context), (sum(wanted), self.vocab_size)
        )

    def _decode(self, piece: Sequence[int]) -> None:
        count = len(piece)
        self._tokens[:count] = piece
        self._positions[:count] = range(self.cached, self.cached + count)
        self._batch.n_tokens = count
        code = self._lib.llama_decode(self._context, self._batch)
        if code:
            raise _failed(
                f"llama.cpp stopped with code {code} at token {self.cached}", "use a smaller context"
            )
        self.cached += count

    def description(self) -> dict[str, object]:
        return {
            "name": "llama.cpp",
            "package": f"llama-cpp-python {self._lib.__version__}",
            "system_info": self._lib.llama_print_system_info().decode().strip(),
            "extra_buffers": self.extra_buffers,
        }

    def keep(self, count: int) -> None:
        if not 0 <= count <= self.cached:
            raise ValueError(f"{count} tokens can't be kept of {self.cached}")
        if not self._lib.llama_memory_seq_rm(self._memory, 0, count, -1):
            self._lib.llama_memory_clear(self._memory, False)
            count = 0
        self.cached = count

    def close(self) -> None:
        if self._batch is not None:
            self._lib.llama_batch_free(self._batch)
        if self._context:
            self._lib.llama_free(self._context)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._batch = self._context = self._model = None


def _amx_is_broken(lib: Any) -> bool:
    """Whether libllama has AMX kernels that this CPU would run.

    gcc drops the tile configuration on the stack, so they crash (llama.cpp issue 20824, pull request 26954);
    without llama.cpp's extra buffers plain kernels run. A library built without AMX keeps its fast path.
    """
    if b"AMX_INT8 = 1" not in lib.llama_print_system_info():
        return False
    try:
        return "amx_int8" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True


def _checked_header(path: Path) -> GgufHeader:
    header = read_header(path)
    if header.metadata.get("split.count", 1) > 1:
        raise EdgeError(
            f"{path} is one part of a split model", "merge the parts with llama-gguf-split --merge"
        )
    if not header.tensors:
        raise EdgeError(f"{path} holds no weights (a vocabulary alone)", "give the whole model file")
    if not header.architecture:
        raise EdgeError(f"{path} does not name its architecture", "export or convert the model again")
    return header


def _failed(message: str, hint: str) -> EdgeError:
    from minigpt_edge_runtime.engines import llama_log

    lines = [line for line in llama_log.last_lines() if "error" in line.lower() or "fail" in line.lower()]
    return EdgeError(f"{message}: {lines[0]}" if lines else message, hint)
