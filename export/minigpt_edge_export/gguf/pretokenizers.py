"""llama.cpp's names for ways to split text before byte-level BPE, and the Hugging Face form of each.

A GGUF file carries only the name (`tokenizer.ggml.pre`), a Hugging Face directory only the form. Both must
agree to the token, or a model is run on other tokens than it was trained on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from minigpt_edge_export.gguf.added_tokens import check_added_tokens
from minigpt_edge_export.gguf.sentencepiece import check_sentencepiece, is_sentencepiece
from minigpt_edge_runtime.errors import EdgeError

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class PreTokenizer:
    """How text is split: single digits first, then a regular expression (None: GPT-2's own)."""

    single_digits: bool = False
    regex: str | None = None
    ignore_merges: bool = False  # a piece that is in the vocabulary as a whole is taken as it is
    adds_bos: bool = False  # llama.cpp's default where the file says nothing

    def steps(self) -> list[dict[str, Any]]:
        """The steps as in `tokenizer.json`, in order."""
        steps: list[dict[str, Any]] = []
        if self.single_digits:
            steps.append({"type": "Digits", "individual_digits": True})
        if self.regex is not None:
            pattern = {"Regex": self.regex}
            steps.append({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
        flags = {"add_prefix_space": False, "trim_offsets": True, "use_regex": self.regex is None}
        return [*steps, {"type": "ByteLevel", **flags}]


_GPT2 = PreTokenizer()
_DIGITS = PreTokenizer(single_digits=True)
_LLAMA_BPE = PreTokenizer(regex=_WORDS + r"\p{N}{1,3}" + _REST, ignore_merges=True, adds_bos=True)
_SMAUG = PreTokenizer(regex=_WORDS + r"\p{N}{1,3}" + _REST)
_QWEN2 = PreTokenizer(regex=_WORDS + r"\p{N}" + _REST)

# The first name of a form is the one given to a Hugging Face directory that has it.
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    **dict.fromkeys(
        ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "mellum"), _GPT2
    ),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), _LLAMA_BPE
    ),
    **dict.fromkeys(("smaug-bpe", "dbrx"), _SMAUG),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"), _QWEN2),
}


def by_name(name: str | None) -> PreTokenizer:
    """The form of a `tokenizer.ggml.pre` name; EdgeError for one that is not known."""
    if name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name]
    said = f"pre-tokenizer {name!r} is not known" if name else "the file does not name its pre-tokenizer"
    raise EdgeError(
        f"{said}, so its text can't be split as llama.cpp splits it", f"known: {', '.join(PRE_TOKENIZERS)}"
    )


def to_hugging_face(pre: PreTokenizer) -> dict[str, Any]:
    """The `pre_tokenizer` entry of `tokenizer.json`."""
    steps = pre.steps()
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


def has_form(tokenizer: dict[str, Any], pre: PreTokenizer) -> bool:
    """Whether a `tokenizer.json` (as parsed JSON) splits text in that way."""
    ours = [_canonical(step) for step in pre.steps()]
    return _steps(tokenizer) == ours and bool(tokenizer["model"].get("ignore_merges")) == pre.ignore_merges


def name_of(tokenizer: dict[str, Any]) -> str:
    """The llama.cpp name for a `tokenizer.json` (as parsed JSON).

    Raises:
        EdgeError: it is neither a byte-level BPE nor a SentencePiece BPE, or splits text in a way that
            llama.cpp has no name for here.
    """
    check_tokenizer(tokenizer)
    if is_sentencepiece(tokenizer):
        return "default"
    for name, known in PRE_TOKENIZERS.items():
        if has_form(tokenizer, known):
            return name
    shown = json.dumps(tokenizer["pre_tokenizer"], ensure_ascii=False)
    raise EdgeError(
        f"the tokenizer splits text in a way that has no known llama.cpp name: {shown[:300]}",
        f"known: {', '.join(PRE_TOKENIZERS)}; name it in config.json under minigpt_edge.tokenizer_pre",
    )


def check_byte_level(tokenizer: dict[str, Any]) -> None:
    """Raise EdgeError unless a `tokenizer.json` (parsed) is a byte-level BPE that leaves text as it is."""
    model = tokenizer.get("model") or {}
    last = _raw_steps(tokenizer)[-1].get("type")
    marks = [
        name for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout") if model.get(name)
    ]
    if model.get("type") != "BPE" or last != "ByteLevel" or marks:
        kind = model.get("type") or "unknown"
        raise EdgeError(
            f"the tokenizer is not a plain byte-level BPE ({', '.join([kind, *marks])})",
            "use a model with a byte-level BPE tokenizer, such as SmolLM2 or Llama 3",
        )
    normalizer = tokenizer.get("normalizer")
    if normalizer and normalizer.get("normalizers", True):
        raise EdgeError(
            f"the tokenizer first rewrites text ({normalizer.get('type')}), which GGUF can't express",
            "use a model whose tokenizer has no normalizer",
        )


def check_tokenizer(tokenizer: dict[str, Any]) -> None:
    """Raise EdgeError unless a `tokenizer.json` (parsed) is of a kind that llama.cpp reads the same way."""
    if is_sentencepiece(tokenizer):
        check_sentencepiece(tokenizer)
    else:
        check_byte_level(tokenizer)
    check_added_tokens(tokenizer)


def _raw_steps(tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    pre = tokenizer.get("pre_tokenizer") or {}
    return (pre.get("pretokenizers") or [{}]) if pre.get("type") == "Sequence" else [pre]


def _steps(tokenizer: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [_canonical(step) for step in _raw_steps(tokenizer)]


def _canonical(step: dict[str, Any]) -> tuple[Any, ...]:
    """One step without what does not change the tokens."""
    kind = step.get("type")
    if kind == "Digits":
        return "digits", bool(step.get("individual_digits"))
    if kind == "Split":
        regex = (step.get("pattern") or {}).get("Regex")
        isolates = (step.get("behavior"), bool(step.get("invert"))) in {
            ("Isolated", False),
            ("Removed", True),
        }
        if regex == r"\p{N}" and step.get("behavior") == "Isolated":
            return "digits", True
        return "split", regex, isolates
    if kind == "ByteLevel":
        return "bytes", bool(step.get("add_prefix_space", True)), bool(step.get("use_regex", True))
    return (json.dumps(step, sort_keys=True),)
