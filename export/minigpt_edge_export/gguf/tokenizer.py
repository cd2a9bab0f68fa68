"""A Hugging Face tokenizer, byte-level or SentencePiece BPE, and its chat template as fields of a GGUF file.

The stock converter recognises a tokenizer by a hash of token ids, which a trimmed vocabulary changes. Here
the way text is split is read from tokenizer.json, or from config.json (minigpt_edge.tokenizer_pre) and
checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge_export.gguf.chat_templates import self_contained, write_templates
from minigpt_edge_export.gguf.pretokenizers import PRE_TOKENIZERS, check_tokenizer, has_form, name_of
from minigpt_edge_export.gguf.sentencepiece import BYTES, is_sentencepiece, scores, spaces_of
from minigpt_edge_export.tokens.prompts import rendered
from minigpt_edge_export.tokens.special_tokens import SpecialTokens, special_tokens
from minigpt_edge_runtime.engines.text import open_tokenizer
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json, understanding
from minigpt_edge_runtime.formats.end_tokens import ends_by_text, fill_tokens
from minigpt_edge_runtime.formats.tokenizer_files import (
    TOKENIZER,
    chat_templates,
    read_tokenizer_config,
    special_texts,
)

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # gguf.TokenType
_MORE_ENDS = ("eot", "eom")  # roles that GGUF has for ends besides EOS


@dataclass(frozen=True)
class GgufTokenizer:
    """A tokenizer as llama.cpp reads it: ids are the positions in `tokens`.

    `scores` are there for a SentencePiece BPE, which has no `merges` in a file.
    """

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    pre: str
    special_ids: Mapping[str, int]  # "bos" and "eos", "unk" and "pad" where there are such tokens
    adds_bos: bool
    adds_eos: bool
    chat_templates: Mapping[str, str]
    scores: tuple[float, ...] = ()
    space_prefix: bool = False  # a space is put before every text, and before what follows a special token
    more_ids: Mapping[str, int] = field(default_factory=dict)  # role -> id of further end tokens

    def write(self, writer: GGUFWriter) -> None:
        """Add the fields to a GGUF file that is being written."""
        writer.add_tokenizer_model("llama" if self.scores else "gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        if not self.scores:
            writer.add_token_merges(self.merges)
        for role, index in self.special_ids.items():
            getattr(writer, f"add_{role}_token_id")(index)
        for role, index in self.more_ids.items():
            writer.add_uint32(f"tokenizer.ggml.{role}_token_id", index)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(self.adds_eos)
        writer.add_add_space_prefix(self.space_prefix)
        write_templates(writer, self.chat_templates)


def read_tokenizer(directory: Path, vocab_size: int) -> GgufTokenizer:
    """Read tokenizer.json and the files beside it.

    Args:
        directory: also holds config.json. tokenizer_config.json, generation_config.json and
            chat_template.jinja are read where they exist.
        vocab_size: rows of the embedding; rows without a token become unused "[PADn]" tokens.

    Raises:
        EdgeError: a file is missing or damaged, the tokenizer is of an unknown kind or splits text in an
            unknown way, or there are more tokens than rows.
    """
    path = directory / TOKENIZER
    with understanding(path, "the files beside it may be damaged too: copy the directory again"):
        return _read(directory, path, vocab_size)


def _read(directory: Path, path: Path, vocab_size: int) -> GgufTokenizer:
    data = read_json(path)
    config = read_json(directory / "config.json")
    settings = read_tokenizer_config(directory)
    check_tokenizer(data)
    pieces = is_sentencepiece(data)
    tokenizer = open_tokenizer(path, "use an undamaged tokenizer.json")
    tokens, types = _vocabulary(tokenizer, vocab_size, path)
    if pieces:
        types = _piece_types(tokens, types, data["model"].get("unk_token"))
    special = special_tokens(directory, tokenizer, vocab_size)
    prefix, suffix = _added_around(tokenizer, path)
    if len(prefix) > 1 or len(suffix) > 1:
        raise EdgeError(
            f"{path} puts several tokens around a text, which GGUF can't express",
            "take them out of its post_processor, and write them in the chat template",
        )
    for role, ids in (("bos", prefix), ("eos", suffix)):
        if ids and special.ids[role] != ids[0]:
            raise EdgeError(
                f"{path} puts {tokens[ids[0]]!r} around texts, the {role} token is "
                f"{tokens[special.ids[role]]!r}",
                f"set {role}_token in tokenizer_config.json to the same token",
            )
    templates, texts = chat_templates(directory, settings), special_texts(settings)
    bos = texts.get("bos_token", "")
    prompts = [text for one in templates.values() for _, text in rendered(one, texts)]
    known = {f"{role}_token": tokens[special.ids[role]] for role in ("bos", "eos")}
    return GgufTokenizer(
        tokens=tuple(tokens),
        types=tuple(types),
        merges=() if pieces else _merges(data["model"], path),
        pre=_pre(data, config, path),
        special_ids=special.ids,
        # llama.cpp adds them to rendered prompts too, transformers never
        adds_bos=bool(prefix) and all(text.startswith(bos) for text in prompts),
        adds_eos=bool(suffix) and not templates,
        chat_templates=self_contained(templates, texts, known),
        scores=tuple(scores(data, tokens)) if pieces else (),
        space_prefix=pieces and spaces_of(data) == "prefix",
        more_ids=_more_ids(tokenizer, special),
    )


def _more_ids(tokenizer: Tokenizer, special: SpecialTokens) -> dict[str, int]:
    """Roles of the end tokens that llama.cpp does not know from EOS or by their text."""
    by_text, fills = ends_by_text(tokenizer.token_to_id), fill_tokens(tokenizer.token_to_id)
    others = [index for index in special.ends[1:] if index not in by_text]
    roles = [*_MORE_ENDS, *(kind for kind, tokens in fills.items() if not tokens)]
    if len(others) > len(roles):
        names = ", ".join(repr(tokenizer.id_to_token(index)) for index in others)
        raise EdgeError(
            f"besides EOS {len(others)} tokens end a generation ({names}), GGUF has room for {len(roles)}",
            "take some out of eos_token_id in generation_config.json",
        )
    # Of several tokens of a kind llama.cpp would take any.
    ambiguous = {kind: tokens[0] for kind, tokens in fills.items() if len(tokens) > 1}
    return dict(zip(roles, others, strict=False)) | ambiguous


def _pre(data: dict[str, Any], config: dict[str, Any], path: Path) -> str:
    """llama.cpp's name for how text is split: the recorded one if it fits, else the recognised one."""
    recorded = (config.get("minigpt_edge") or {}).get("tokenizer_pre")
    if recorded is None or is_sentencepiece(data):
        return name_of(data)
    known = PRE_TOKENIZERS.get(recorded)
    if known is not None and not has_form(data, known):
        raise EdgeError(
            f"{path} does not split text as {recorded!r} does, which config.json records for it",
            "correct its pre_tokenizer, or minigpt_edge.tokenizer_pre in config.json",
        )
    return str(recorded)


def _vocabulary(tokenizer: Tokenizer, vocab_size: int, path: Path) -> tuple[list[str], list[int]]:
    """Texts and types by id, as `tokenizers` numbers them: it may not keep an added token's stated id."""
    by_text = tokenizer.get_vocab(with_added_tokens=True)
    by_id = {index: text for text, index in by_text.items()}
    if not by_id or max(by_id) >= vocab_size:
        raise EdgeError(
            f"{path} has tokens up to id {max(by_id, default=-1)}, the embedding has {vocab_size} rows",
            "tokenizer.json and the weights must come from the same run",
        )
    if len(by_id) != len(by_text):
        raise EdgeError(f"{path} gives two tokens one id", "number the tokens without holes")
    kinds = {
        index: CONTROL if token.special else USER_DEFINED
        for index, token in tokenizer.get_added_tokens_decoder().items()
    }
    texts = set(by_id.values())
    tokens, types = [], []
    for index in range(vocab_size):
        text = by_id.get(index)
        if text is None:
            text = f"[PAD{index}]"
            while text in texts:
                text = f"[{text}]"
        tokens.append(text)
        types.append(kinds.get(index, NORMAL) if index in by_id else UNUSED)
    return tokens, types


def _piece_types(tokens: list[str], types: list[int], unknown: str | None) -> list[int]:
    """Types with those that only a SentencePiece vocabulary has."""
    own: dict[str | None, int] = {**dict.fromkeys(BYTES, BYTE), unknown: UNKNOWN}
    return [own.get(token, kind) for token, kind in zip(tokens, types, strict=True)]


def _merges(model: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Merges as "left right"; one that needs or makes a token that is not there would lose bytes silently."""
    vocabulary, merges = model["vocab"], []
    for merge in model["merges"]:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise EdgeError(
                f"{path}: the merge {merge!r} does not fit the vocabulary", "trim the vocabulary again"
            )
        merges.append(" ".join(pair))
    return tuple(merges)


def _added_around(tokenizer: Tokenizer, path: Path) -> tuple[list[int], list[int]]:
    """The tokens that the post-processor puts before and after a text, found by trying it."""
    bare, full = tokenizer.encode("a", add_special_tokens=False).ids, tokenizer.encode("a").ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise EdgeError(
        f"{path}: its post-processor changes the tokens of a text, which GGUF can't express",
        "use a model with another tokenizer",
    )
