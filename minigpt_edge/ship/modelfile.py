"""Ollama's Modelfile of a bundle, with the chat template in ollama's language.

The template itself is written into the GGUF file by `minigpt_edge_export.gguf.tokenizer`, and copied into the
bundle by `bundling`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from minigpt_edge_export.tokens.special_tokens import special_tokens
from minigpt_edge_runtime.engines.text import open_tokenizer
from minigpt_edge_runtime.files import read_json
from minigpt_edge_runtime.formats.tokenizer_files import TOKENIZER

_PROBE = "minigpt-edge-probe"
_CHATML = """\
{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""


def modelfile(model_file: str, chat_template: str | None, stop: Sequence[str] = ()) -> str:
    """The Modelfile's text.

    A ChatML template is written in ollama's language, with the system message it adds of its own accord. Any
    other is left for ollama to recognise in the GGUF file. Without one the prompt goes to the model as it is.

    Args:
        chat_template: the model's Jinja template; None for a model without one.
        stop: texts of the tokens that end an answer.
    """
    lines = [f"FROM ./{model_file}"]
    stops = list(stop)
    if chat_template is None:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    elif (system := chatml_system(chat_template)) is not None:
        lines.append(f'TEMPLATE """{_CHATML}"""')
        if system:
            lines.append(f'SYSTEM """{system}"""')
        stops.insert(0, "<|im_end|>")
    lines += [f'PARAMETER stop "{text}"' for text in dict.fromkeys(stops) if text]
    return "\n".join(lines) + "\n"


def chatml_system(chat_template: str) -> str | None:
    """The system message that a ChatML template adds of its own accord ("" if none); None if not ChatML.

    Found by rendering a one-message conversation: templates for the same format are written in many ways.
    """
    from minigpt_edge_runtime.generate.chat_template import render

    conversation = [{"role": "user", "content": _PROBE}]
    try:
        text = render(
            chat_template,
            messages=conversation,
            add_generation_prompt=True,
            bos_token="",
            eos_token="<|im_end|>",
        )
    except Exception:  # a template raises what it likes
        return None
    turn = f"<|im_start|>user\n{_PROBE}<|im_end|>\n<|im_start|>assistant\n"
    found = re.fullmatch(rf"(?:<\|im_start\|>system\n(.*?)<\|im_end\|>\n)?{re.escape(turn)}", text, re.DOTALL)
    return None if found is None else (found[1] or "")


def stop_texts(checkpoint: Path) -> list[str]:
    """The texts of all tokens that end an answer, for programs that stop by text."""
    tokenizer = open_tokenizer(checkpoint / TOKENIZER)
    ends = special_tokens(checkpoint, tokenizer, read_json(checkpoint / "config.json")["vocab_size"]).ends
    return [tokenizer.decode([index], skip_special_tokens=False) for index in ends]
