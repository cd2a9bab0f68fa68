"""Texts that llama.cpp gives a meaning whatever a file says: what ends a generation, what is special.

Read from `llama_vocab::impl::load` of the pinned llama.cpp (llama-vocab.cpp). Every format follows it, since
a GGUF file can't say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Set

_ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"),
    *("<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
    *("<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "[e~["),
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
# One token of each kind: llama.cpp takes any, unless the file names it.
FILL_ENDS = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
_FILL = (
    *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>"),
    *("\u2581<PRE>", "<|code_prefix|>", "<|prefix|>"),
    *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim\u2581hole\uff5c>", "<SUF>"),
    *("\u2581<SUF>", "<|code_suffix|>", "<|suffix|>"),
    *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim\u2581end\uff5c>", "<MID>"),
    *("\u2581<MID>", "<|code_middle|>", "<|middle|>"),
)
_SPECIAL = frozenset((*_ENDS, *_FILL, *(text for texts in FILL_ENDS.values() for text in texts)))
_NEVER_SPECIAL = frozenset(("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"))
_CALLS, _WITH_CALLS = {"<|call|>", "<|calls|>"}, {"<|return|>", "<|flush|>"}

Find = Callable[[str], int | None]


def fill_tokens(find: Find) -> dict[str, list[int]]:
    """The tokens of each kind in FILL_ENDS, the one that ends a generation first.

    Args:
        find: the id of a token by its text, None if there is none.
    """
    return {kind: [i for text in texts if (i := find(text)) is not None] for kind, texts in FILL_ENDS.items()}


def ends_by_text(find: Find) -> set[int]:
    """Ids of the tokens that llama.cpp lets end a generation because of their text."""
    found = {text: index for text in _ENDS if (index := find(text)) is not None}
    if _CALLS & found.keys() and _WITH_CALLS & found.keys():
        found.pop("<|end|>", None)  # it ends a message there, not the answer
    if "<|tool_response>" in found:
        found.pop("</s>", None)
    return {*found.values(), *(tokens[0] for tokens in fill_tokens(find).values() if tokens)}


def special_by_text(texts: Set[str]) -> dict[str, bool]:
    """The tokens that llama.cpp takes for special, or for not special, because of their text.

    Args:
        texts: of all tokens.
    """
    found = dict.fromkeys(_SPECIAL & texts, True) | dict.fromkeys(_NEVER_SPECIAL & texts, False)
    if "<|end|>" in texts and _CALLS & texts and _WITH_CALLS & texts:
        found["<|end|>"] = False
    return found
