"""ONNX decoders on onnxruntime, with a key-value cache that is written in place.

The graph's contract is the one of onnxruntime-genai: input_ids, attention_mask, past_key_values.N.key and
.value in; logits, present.N.key and .value out, where past and present may be one buffer of the whole
context. An optional input, logits_start, says from which row on logits are wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minigpt_edge_runtime.engines.engine import Engine, Fork, context_of
from minigpt_edge_runtime.engines.text import TextCodec
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.formats.onnx_header import CONFIG, OnnxHeader, read_onnx

CHUNK = 512  # tokens of a prompt evaluated at once: attention scores grow with chunk x context
_EVERY, _LAST = 0, -1  # values of logits_start
_AGAIN = "copy or build the bundle again"
_UPDATE = "it needs an operator that this onnxruntime does not have: update onnxruntime"
_FAILURES = {
    "NOT_IMPLEMENTED": _UPDATE,
    "is not a registered function/op": _UPDATE,
    "INVALID_GRAPH": f"{_UPDATE}; or it is damaged: {_AGAIN}",
}


def load_library() -> Any:
    """The onnxruntime module; EdgeError if it is not installed or does not load."""
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        raise EdgeError(
            f"running an ONNX file needs onnxruntime ({error})", 'pip install "minigpt-edge-runtime[onnx]"'
        ) from error
    return onnxruntime


def open_session(path: Path, threads: int) -> Any:
    """An inference session on the CPU; EdgeError with onnxruntime's reason if the file can't be loaded."""
    library = load_library()
    options = library.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # what is fatal is raised too
    try:
        # What it calls falling back is a second try on the same CPU, announced on stdout.
        return library.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # onnxruntime's exceptions share no base class
        reason = str(error).rpartition("failed:")[2]
        hint = next((text for name, text in _FAILURES.items() if name in str(error)), _AGAIN)
        if "alloc" in str(error) or isinstance(error, MemoryError):
            hint = "free some memory, or use a smaller model"
        raise EdgeError(f"onnxruntime can't load {path}: {_one_line(reason)}", hint) from error


class OnnxEngine(Engine):
    """One model and one sequence in onnxruntime."""

    def __init__(self, path: Path, context_length: int | None, threads: int, logits_all: bool) -> None:
        self.header = read_onnx(path)
        _check_graph(self.header)
        self.context_length = context_of(path.parent.name, self.header.context_length, context_length)
        self.text = TextCodec(path.parent, self.header.end_ids)
        self.vocab_size = _vocabulary(self.header, self.text)
        self._library = load_library()
        self._session: Any = open_session(path, threads)
        self.logits_all = logits_all
        self._bound: dict[str, Any] = {}  # a bound value does not keep its array alive
        self._binding = self._session.io_binding()
        try:
            self._bind_cache()
            self._mask = np.ones((1, self.context_length), dtype=np.int64)
        except MemoryError as error:
            raise EdgeError(
                f"there is no memory for a context of {self.context_length:,} tokens",
                "use a smaller context, or free some memory",
            ) from error
        self._start: np.ndarray | None = None
        if any(value.name == "logits_start" for value in self._session.get_overridable_initializers()):
            self._start = np.empty(1, dtype=np.int64)
            self._bind_input("logits_start", self._start)
        rows = min(CHUNK, self.context_length)
        # Without logits_start the graph gives every row, whether wanted or not.
        self._rows = np.zeros(
            (1, rows if logits_all or self._start is None else 1, self.vocab_size), np.float32
        )

    def _bind_cache(self) -> None:
        """One buffer a block for keys and one for values, of the whole context, past and present at once."""
        for value in self._session.get_inputs():
            if value.name.startswith("past_key_values."):
                _, heads, _, size = value.shape
                kind = np.float16 if value.type == "tensor(float16)" else np.float32
                buffer = np.zeros((1, heads, self.context_length, size), dtype=kind)
                bound = self._bind_input(value.name, buffer)
                present = value.name.replace("past_key_values.", "present.")
                self._binding.bind_ortvalue_output(present, bound)

    def _bind_input(self, name: str, array: np.ndarray) -> Any:
        value = self._library.OrtValue.ortvalue_from_numpy(array)  # shares the array's memory
        self._binding.bind_ortvalue_input(name, value)
        self._bound[name] = value
        return value

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        ids = super().tokenize(text, special=special)
        if ids and max(ids) >= self.vocab_size:  # there are fewer tokens, but ids may have gaps
            raise EdgeError(f"the tokenizer beside {self.header.path} has ids that the model has not", _AGAIN)
        return ids

    def eval(self, tokens: Sequence[int]) -> np.ndarray:
        if not len(tokens):
            raise ValueError("no tokens to evaluate")
        self._check(tokens)
        for start in range(0, len(tokens), CHUNK):
            rows = self._run(tokens[start : start + CHUNK], _LAST)
        return rows[-1]

    def score(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        self._begin_scoring()
        self._check(tokens)
        for start in range(0, len(tokens), CHUNK):
            yield self._run(tokens[start : start + CHUNK], _EVERY)

    def forks(self, forks: Sequence[Fork]) -> Iterator[tuple[int, int, int, np.ndarray]]:
        self._begin_scoring()
        try:
            for index, (beginning, branches) in enumerate(forks):
                first = self.eval(beginning)[None].copy()
                for at, branch in enumerate(branches):
                    self._check(branch[:-1])
                    if branch:
                        yield index, at, 0, first
                    for start in range(0, len(branch) - 1, CHUNK):
                        rows = self._run(branch[start : min(start + CHUNK, len(branch) - 1)], _EVERY)
                        yield index, at, start + 1, rows
                    self.keep(len(beginning))
                self.reset()
        finally:
            self.reset()

    def _run(self, tokens: Sequence[int], start: int) -> np.ndarray:
        """Append one chunk; its logits [rows, vocab], of all its tokens or of the last one."""
        total = self.cached + len(tokens)
        self._bind_input("input_ids", np.array([tokens], dtype=np.int64))
        self._bind_input("attention_mask", self._mask[:, :total])
        count = len(tokens)
        if self._start is not None:
            self._start[0] = start
            count = 1 if start == _LAST else count
        rows = self._rows[:, :count]
        self._bound["logits"] = self._library.OrtValue.ortvalue_from_numpy(rows)
        self._binding.bind_ortvalue_output("logits", self._bound["logits"])
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's exceptions share no base class
            full = "alloc" in str(error)
            raise EdgeError(
                f"onnxruntime stopped at token {self.cached}: {_one_line(str(error))}",
                "use a smaller context, or free some memory" if full else _AGAIN,
            ) from error
        self.cached = total
        return rows[0]

    def _check(self, tokens: Sequence[int]) -> None:
        self._check_ids(tokens)
        self._check_room(len(tokens))

    def description(self) -> dict[str, object]:
        return {
            "name": "onnxruntime",
            "package": f"onnxruntime {self._library.__version__}",
            "system_info": self._library.get_build_info(),
        }

    def keep(self, count: int) -> None:
        if not 0 <= count <= self.cached:
            raise ValueError(f"{count} tokens can't be kept of {self.cached}")
        self.cached = count

    def close(self) -> None:
        self._binding = self._session = None
        self._bound = {}


def _check_graph(header: OnnxHeader) -> None:
    """EdgeError if the graph is not a decoder with a cache that can be written in place."""
    caches = {name: shape for name, shape in header.inputs.items() if name.startswith("past_key_values.")}
    sizes = [shape[at] for shape in caches.values() if len(shape) == 4 for at in (1, 3)]
    whole = len(sizes) == 2 * len(caches) and all(isinstance(size, int) for size in sizes)
    presents = {name.replace("past_key_values.", "present.") for name in caches}
    needed = {"input_ids", "attention_mask"} <= header.inputs.keys()
    if not (caches and whole and needed and {"logits", *presents} <= header.outputs.keys()):
        raise EdgeError(f"{header.path} is not a decoder with a key-value cache", "export it again")
    known = {"input_ids", "attention_mask", "logits_start", *caches}
    if foreign := sorted(header.inputs.keys() - known):
        raise EdgeError(f"{header.path} has an input that is not known: {foreign[0]}", "export it again")
    if not header.shares_cache:
        raise EdgeError(
            f"{header.path.parent / CONFIG} does not say past_present_share_buffer, so its cache would be "
            "copied for every token",
            "export it again",
        )


def _vocabulary(header: OnnxHeader, text: TextCodec) -> int:
    """Tokens whose logits the graph computes.

    Raises:
        EdgeError: it does not say, or its tokenizer has more tokens.
    """
    *_, size = header.outputs["logits"] or [""]
    if not isinstance(size, int):
        raise EdgeError(f"{header.path} does not say how many tokens its vocabulary has", "export it again")
    if text.vocab_size > size:
        raise EdgeError(
            f"the tokenizer beside {header.path} has {text.vocab_size:,} tokens, the model {size:,}",
            f"they are of different builds: {_AGAIN}",
        )
    return size


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
