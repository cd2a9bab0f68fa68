"""The last step of reading a base: its tokens mean in transformers what they mean in llama.cpp."""

from __future__ import annotations

from pathlib import Path

from minigpt_edge_export.gguf.added_tokens import with_fixed_types
from minigpt_edge_export.tokens.special_tokens import special_tokens
from minigpt_edge_export.verify_tokens import prove_tokenizer
from minigpt_edge_runtime.engines.engine import END_OF_TEXT
from minigpt_edge_runtime.engines.text import open_tokenizer
from minigpt_edge_runtime.files import read_json, understanding, write_json
from minigpt_edge_runtime.formats.tokenizer_files import GENERATION_CONFIG, TOKENIZER


def settle_tokenizer(folder: Path) -> list[str]:
    """Make tokens special, and ends of a generation, that llama.cpp takes for that by their text.

    generation_config.json states every end token afterwards, config.json the token that documents start with:
    <|endoftext|> if there is one, else BOS or what stands for it.

    Returns:
        what was changed and a user may want to know.

    Raises:
        EdgeError: GGUF can't express the tokenizer, or llama.cpp would make other tokens of some text.
    """
    tokenizer = read_json(folder / TOKENIZER)
    if (fixed := with_fixed_types(tokenizer)) != tokenizer:
        write_json(folder / TOKENIZER, fixed)
    opened = open_tokenizer(folder / TOKENIZER)
    config, generation = (read_json(folder / name) for name in ("config.json", GENERATION_CONFIG))
    with understanding(folder / GENERATION_CONFIG, "correct the token ids in the model's file of that name"):
        special = special_tokens(folder, opened, config["vocab_size"])
    has_end_of_text = opened.token_to_id(END_OF_TEXT) is not None
    start = END_OF_TEXT if has_end_of_text else opened.id_to_token(special.ids["bos"])
    config["minigpt_edge"]["document_start"] = start
    write_json(folder / "config.json", config)
    ends, stated = special.ends, generation.get("eos_token_id")
    before = set(stated if isinstance(stated, list) else [stated])
    if before != set(ends):
        stated = list(ends) if len(ends) > 1 else ends[0]
        write_json(folder / GENERATION_CONFIG, generation | {"eos_token_id": stated})
    prove_tokenizer(folder, folder.parent)
    new = [repr(opened.id_to_token(index)) for index in ends if index not in before]
    return [f"answers also end at {', '.join(new)}, as llama.cpp or the tokenizer has it"] if new else []
