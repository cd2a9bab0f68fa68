"""Time one ONNX folder in this process, through onnxruntime or through onnxruntime-genai's own generator.

    python run_onnx.py FOLDER [--api ort|genai] [--threads N] …

Where the graph allows it, past and present share one buffer that is bound once (GroupQueryAttention without a
bias). Elsewhere every step's present tensors are new ones that onnxruntime allocates, and become the next
step's past, which is how optimum runs its exports.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from timing import arguments, run

CPU = ("cpu", 0)


class OrtModel:
    """The model.onnx of a folder; inputs and outputs named as by genai and optimum, or as by transformers."""

    def __init__(self, folder: Path, threads: int, room: int) -> None:
        import numpy as np
        import onnxruntime as ort

        self._numpy, self._ort = np, ort
        self.versions = {"onnxruntime": ort.__version__}
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        (path,) = folder.glob("*.onnx")
        self._session = session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._binding = session.io_binding()
        self._inputs = {value.name for value in session.get_inputs()}
        self._outputs = [value.name for value in session.get_outputs()]
        self._past = {v.name: v.shape for v in session.get_inputs() if "past_key_values" in v.name}
        self.vocab_size = session.get_outputs()[self._outputs.index("logits")].shape[-1]
        # how our own graph is asked for the last token's logits alone; the builder's prune_lm_head fixes that
        self._choice = any(value.name == "logits_start" for value in session.get_overridable_initializers())
        self._ones = np.ones((1, room), np.int64)
        self._positions = np.arange(room, dtype=np.int64)[None]
        self._shared = shares_buffers(path)
        for name in self._past if self._shared else ():
            buffer = self._empty(name, room)
            self._binding.bind_ortvalue_input(name, buffer)
            self._binding.bind_ortvalue_output(present_of(name), buffer)
        self._last_only = self._choice or self._rows_of_two() == 1

    def prefill(self, tokens: list[int]) -> int:
        self._length = 0
        for name in () if self._shared else self._past:
            self._binding.bind_ortvalue_input(name, self._empty(name, 0))
        return self._pick(self._numpy.array([tokens], self._numpy.int64))

    def step(self, token: int) -> int:
        return self._pick(self._numpy.array([[token]], self._numpy.int64))

    def _pick(self, ids: Any) -> int:
        np, binding = self._numpy, self._binding
        logits = np.empty((1, 1 if self._last_only else ids.shape[1], self.vocab_size), np.float32)
        binding.bind_output("logits", *CPU, np.float32, logits.shape, logits.ctypes.data)
        self._run(ids)
        self.logits = logits[0, -1]
        return int(self.logits.argmax())

    def _run(self, ids: Any) -> None:
        begin, self._length = self._length, self._length + ids.shape[1]
        self._bind("input_ids", ids)
        if "attention_mask" in self._inputs:
            self._bind("attention_mask", self._ones[:, : self._length])
        if "position_ids" in self._inputs:
            self._bind("position_ids", self._positions[:, begin : self._length])
        if self._choice:
            self._bind("logits_start", self._numpy.array([ids.shape[1] - 1], self._numpy.int64))
        if self._shared:
            self._session.run_with_iobinding(self._binding)
            return
        for name in self._past:
            self._binding.bind_output(present_of(name), "cpu")
        self._session.run_with_iobinding(self._binding)
        values = dict(zip(self._outputs, self._binding.get_outputs(), strict=True))
        for name in self._past:
            self._binding.bind_ortvalue_input(name, values[present_of(name)])

    def _rows_of_two(self) -> int:
        """The rows of logits that two tokens give."""
        self._length = 0
        for name in () if self._shared else self._past:
            self._binding.bind_ortvalue_input(name, self._empty(name, 0))
        self._binding.bind_output("logits", "cpu")
        self._run(self._ones[:, :2])
        shapes = [value.shape() for value in self._binding.get_outputs()]
        return next(shape[1] for shape in shapes if len(shape) == 3)

    def _bind(self, name: str, array: Any) -> None:
        self._binding.bind_input(name, *CPU, array.dtype, array.shape, array.ctypes.data)

    def _empty(self, name: str, length: int) -> Any:
        """A past tensor of `length` tokens.

        The builder leaves the head size open in the graph (64 in all models here), transformers writes the
        sizes "3" and "64" as if they were names.
        """
        _, heads, _, size = self._past[name]
        shape = [1, int(heads), length, 64 if size == "kv_cache_dim" else int(size)]
        return self._ort.OrtValue.ortvalue_from_numpy(self._numpy.zeros(shape, self._numpy.float32))


class GenaiModel:
    """A folder with genai_config.json through onnxruntime-genai's generator."""

    def __init__(self, folder: Path, threads: int, room: int) -> None:
        import onnxruntime
        import onnxruntime_genai as og

        self._og, self._room = og, room + 1
        self.versions = {"onnxruntime-genai": og.__version__, "onnxruntime": onnxruntime.__version__}
        self.vocab_size = json.loads((folder / "genai_config.json").read_text())["model"]["vocab_size"]
        config = og.Config(str(folder))
        options = {"intra_op_num_threads": threads, "log_severity_level": 3}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = og.Model(config)
        self._generator: Any = None

    def prefill(self, tokens: list[int]) -> int:
        self._generator = None  # frees its cache before the next one is made
        parameters = self._og.GeneratorParams(self._model)
        # min_length: the end-of-sequence token must not stop it
        parameters.set_search_options(max_length=self._room, min_length=self._room, do_sample=False)
        self._generator = self._og.Generator(self._model, parameters)
        self._generator.append_tokens(tokens)
        return self.step(0)

    def step(self, token: int) -> int:
        """Picks from the prompt's logits, later evaluates the token it picked last and picks from those."""
        self._generator.generate_next_token()
        return int(self._generator.get_next_tokens()[0])


def present_of(past: str) -> str:
    """The output that becomes this input of the next step."""
    if past.startswith("input."):
        return past.replace("input.", "output.", 1)
    return past.replace("past_key_values", "present", 1)


def shares_buffers(path: Path) -> bool:
    """Whether the graph's attention can write into the past's buffer, longer than what it holds."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    biased = any(len(node.input) > 10 and node.input[10] for node in attention)  # as long as the past itself
    return bool(attention) and not biased


def main() -> None:
    """The command line."""
    given = arguments("Time one ONNX folder.", "ort", "genai")
    kind = OrtModel if given.api == "ort" else GenaiModel
    run(partial(kind, given.model, given.threads), given)


if __name__ == "__main__":
    main()
