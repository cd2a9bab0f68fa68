"""Writes a tokenizer that holds only some of its tokens: new dense ids, in every file that names one."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.prune.vocabulary.choose import alphabet, open_tokenizer, read_merges, unreachable_tokens
from minigpt_edge_export.gguf.pretokenizers import check_tokenizer
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json, write_json
from minigpt_edge_runtime.formats.tokenizer_files import (
    CHAT_TEMPLATE,
    GENERATION_CONFIG,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
)

if TYPE_CHECKING:
    import numpy as np

# Hold no ids. vocab.json, merges.txt and added_tokens.json would contradict the trimmed tokenizer.json.
_COPIED = (SPECIAL_TOKENS, CHAT_TEMPLATE)
_FILTERED = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias")


def trim_checkpoint(directory_in: Path, directory_out: Path, kept: Sequence[int]) -> None:
    """`trim_tokenizer`, and config.json and generation_config.json with the new token ids."""
    old_to_new = trim_tokenizer(directory_in, directory_out, kept)
    generation = directory_in / GENERATION_CONFIG
    given = read_json(generation) if generation.exists() else {}
    config, changed = remap_config(read_json(directory_in / "config.json"), given, old_to_new)
    write_json(directory_out / "config.json", config)
    if given:
        write_json(directory_out / GENERATION_CONFIG, changed)


def trim_tokenizer(directory_in: Path, directory_out: Path, kept: Sequence[int]) -> np.ndarray:
    """Write the tokenizer files of a checkpoint with only the kept tokens; chat templates are copied.

    Args:
        directory_in: holds tokenizer.json; tokenizer_config.json and others are used where they exist.
        directory_out: made if it is not there. config.json and generation_config.json are left to
            `remap_config`.
        kept: ascending ids, closed as `choose_tokens` gives them.

    Returns:
        int64 [highest old id + 1]: new id of every old one, -1 for dropped. Row i of a trimmed embedding
        is row kept[i] of the old one.

    Raises:
        EdgeError: as `trim_json`, or a file is missing or damaged.
    """
    data, old_to_new = trim_json(read_json(directory_in / TOKENIZER), kept)
    directory_out.mkdir(parents=True, exist_ok=True)
    write_json(directory_out / TOKENIZER, data)
    settings_path = directory_in / TOKENIZER_CONFIG
    if settings_path.exists():
        write_json(directory_out / TOKENIZER_CONFIG, _settings(read_json(settings_path), data))
    for name in _COPIED:
        if (directory_in / name).exists():
            shutil.copyfile(directory_in / name, directory_out / name)
    return old_to_new


def _settings(settings: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json with new ids, read by the class that takes tokenizer.json as it is."""
    settings = {**settings, "tokenizer_class": "PreTrainedTokenizerFast"}
    if "added_tokens_decoder" in settings:
        ids = {token["content"]: token["id"] for token in data["added_tokens"]}
        entries = settings["added_tokens_decoder"].values()
        known = sorted((ids[entry["content"]], entry) for entry in entries if entry["content"] in ids)
        settings["added_tokens_decoder"] = {str(index): entry for index, entry in known}
    return settings


def trim_json(tokenizer_json: dict[str, Any], kept: Sequence[int]) -> tuple[dict[str, Any], np.ndarray]:
    """A parsed tokenizer.json with only the kept tokens, and the new id of every old one.

    The result is checked by loading it: same ids as computed, and every token still reachable that was.

    Returns:
        the new tokenizer.json, and int64 [highest old id + 1] with -1 for dropped.

    Raises:
        EdgeError: no BPE that can be trimmed; ids that are not ascending or do not exist; a byte symbol or an
            added token is missing; or a kept token can't be built from the kept ones.
    """
    import numpy as np

    check_tokenizer(tokenizer_json)
    ids = open_tokenizer(tokenizer_json).get_vocab(with_added_tokens=True)
    _check_ids(tokenizer_json, ids, kept)
    old_to_new = np.full(max(ids.values()) + 1, -1, dtype=np.int64)
    old_to_new[list(kept)] = np.arange(len(kept))
    new_ids = {text: int(old_to_new[index]) for text, index in ids.items() if old_to_new[index] >= 0}
    data = copy.deepcopy(tokenizer_json)
    model = data["model"]
    names = sorted((text for text in model["vocab"] if text in new_ids), key=new_ids.__getitem__)
    model["vocab"] = {text: new_ids[text] for text in names}
    pairs = zip(model["merges"], read_merges(model), strict=True)
    model["merges"] = [merge for merge, (a, b) in pairs if {a, b, a + b} <= model["vocab"].keys()]
    for token in data["added_tokens"]:
        token["id"] = new_ids[token["content"]]
    data["added_tokens"].sort(key=lambda token: token["id"])
    if data.get("padding"):
        data["padding"]["pad_id"] = _new_id(data["padding"]["pad_token"], new_ids)
    if data.get("post_processor"):
        _remap_processor(data["post_processor"], new_ids)
    _check_result(tokenizer_json, data, new_ids)
    return data, old_to_new


def _check_ids(tokenizer_json: dict[str, Any], ids: dict[str, int], kept: Sequence[int]) -> None:
    """EdgeError unless the kept ids are ascending ids of tokens, with all byte symbols and added tokens."""
    present, chosen = set(ids.values()), set(kept)
    if sorted(chosen) != list(kept) or not chosen <= present:
        wrong = sorted(chosen - present)[:5]
        raise EdgeError(
            f"the kept tokens are not ascending ids of the vocabulary{f': {wrong}' if wrong else ''}",
            "use the plan that was made for this model",
        )
    must = {token["content"] for token in tokenizer_json["added_tokens"]}
    must |= set(alphabet(tokenizer_json))
    must |= {tokenizer_json["model"].get("unk_token")}
    lost = sorted(text for text in must & ids.keys() if ids[text] not in chosen)
    if lost:
        raise EdgeError(
            f"{len(lost)} tokens that must be kept are not: {lost[:5]}",
            "keep every byte symbol and every special or added token, or text would be lost",
        )


def _check_result(before: dict[str, Any], after: dict[str, Any], new_ids: dict[str, int]) -> None:
    """EdgeError unless the library reads the ids as computed, and reaches every token that it reached."""
    if open_tokenizer(after).get_vocab(with_added_tokens=True) != new_ids:
        raise EdgeError(
            "the trimmed tokenizer does not number its tokens as computed",
            "the added tokens of tokenizer.json must come after its other tokens, or be among them",
        )
    lost = set(unreachable_tokens(after)) - set(unreachable_tokens(before))
    if lost:
        raise EdgeError(
            f"{len(lost)} kept tokens can't be built from the kept ones: {sorted(lost)[:5]}",
            "keep every token on the way to a kept one too (choose_tokens does)",
        )


def _remap_processor(processor: dict[str, Any], new_ids: dict[str, int]) -> None:
    """New ids in a post_processor, in place."""
    kind = processor.get("type")
    if kind == "Sequence":
        for part in processor["processors"]:
            _remap_processor(part, new_ids)
    elif kind == "TemplateProcessing":
        for special in processor["special_tokens"].values():
            special["ids"] = [_new_id(text, new_ids) for text in special["tokens"]]
    elif kind in ("RobertaProcessing", "BertProcessing"):
        for role in ("sep", "cls"):
            processor[role] = [processor[role][0], _new_id(processor[role][0], new_ids)]
    elif kind != "ByteLevel":
        raise EdgeError(
            f"the post-processor {kind} can't be given new ids", "use a model with another tokenizer"
        )


def _new_id(text: str, new_ids: dict[str, int]) -> int:
    if text not in new_ids:
        raise EdgeError(
            f"the tokenizer puts {text!r} around texts, but it is not kept", "keep this token as well"
        )
    return new_ids[text]


def config_token_ids(*configs: dict[str, Any]) -> set[int]:
    """Ids to keep since config.json or generation_config.json name them (bos, eos, pad, forced ...)."""
    found: set[int] = set()

    def note(index: int) -> int:
        if index >= 0:  # -1 stands for none
            found.add(index)
        return index

    for config in configs:
        _map_entries({k: v for k, v in config.items() if k not in _FILTERED}, note, lambda index: True)
    return found


def stated_token_ids(checkpoint: Path, config: dict[str, Any]) -> set[int]:
    """`config_token_ids` of a checkpoint's config and of its generation_config.json, where it has one."""
    generation = checkpoint / GENERATION_CONFIG
    return config_token_ids(config, read_json(generation) if generation.exists() else {})


def remap_config(
    config: dict[str, Any], generation_config: dict[str, Any], old_to_new: np.ndarray
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both configs with new ids, and `vocab_size` in the first; what is given is not changed.

    Negative ids are kept. Lists of tokens that must not be generated lose those that are removed.

    Raises:
        EdgeError: an id that is needed (bos, eos, pad, forced ...) was dropped or does not exist.
    """

    def is_kept(index: int) -> bool:
        return index < 0 or (index < len(old_to_new) and old_to_new[index] >= 0)

    def move(index: int) -> int:
        if not is_kept(index):
            raise EdgeError(
                f"the model's configuration names token id {index}, which is not kept or does not exist",
                "correct the id, or keep the token",
            )
        return index if index < 0 else int(old_to_new[index])

    new = _map_entries(config, move, is_kept)
    if "vocab_size" in new:
        new["vocab_size"] = int((old_to_new >= 0).sum())
    return new, _map_entries(generation_config, move, is_kept)


def _map_entries(
    config: dict[str, Any], move: Callable[[int], int], is_kept: Callable[[int], bool]
) -> dict[str, Any]:
    """A config, at any depth, with `move` applied to every token id that one of its entries holds."""
    return {key: _map_entry(key, value, move, is_kept) for key, value in config.items()}


def _map_entry(key: str, value: Any, move: Callable[[int], int], is_kept: Callable[[int], bool]) -> Any:
    if isinstance(value, dict):
        return _map_entries(value, move, is_kept)
    if value is None:
        return None
    if key in ("suppress_tokens", "begin_suppress_tokens"):
        return [move(index) for index in value if is_kept(index)]
    if key == "bad_words_ids":
        return [[move(i) for i in word] for word in value if all(map(is_kept, word))]
    if key == "sequence_bias":
        return [[[move(i) for i in word], bias] for word, bias in value if all(map(is_kept, word))]
    if key == "forced_decoder_ids":
        return [[position, index if index is None else move(index)] for position, index in value]
    if key.endswith(("_token_id", "_token_ids")) or key == "force_words_ids":
        return _map_numbers(value, move)
    return value


def _map_numbers(value: Any, move: Callable[[int], int]) -> Any:
    if isinstance(value, list):
        return [_map_numbers(item, move) for item in value]
    return move(value) if isinstance(value, int) else value
