"""What a bundle says about itself: the model card (README.md) and ollama's Modelfile."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt_edge.report.tables import Table, by_role, compared, get, headline, tables
from minigpt_edge_runtime.files import write_text

_HUB_LICENCES = frozenset(
    {
        "apache-2.0",
        "mit",
        "bsd-2-clause",
        "bsd-3-clause",
        "cc0-1.0",
        "cc-by-4.0",
        "cc-by-sa-4.0",
        "gpl-2.0",
        "gpl-3.0",
        "llama2",
        "llama3",
        "gemma",
        "openrail",
    }
)
_IN_CARD = ("models", "speed", "pruned")
_PROBE = "minigpt-edge-probe"

_CARD = """\
---
{front}---

# {name}

{headline}

Made by minigpt-edge{version} from {base}{domain}: {steps}.

{figures}

## Run it

{run}With the runtime that came with it, in this directory:

```sh
minigpt-edge-runtime run . {shell_prompt}
minigpt-edge-runtime verify .
```
{architecture}
## Limits

- It was made for {subject}. Expect other subjects, other languages and general knowledge to be \
worse than in the base model: they were not measured{elsewhere}.
- It continues text. No step of its making looked at instructions: answers to questions may be \
worse than the base model's.
- It writes what is likely, not what is true. It is no {advice}.
- {licence}
{texts}
"""

_RUN_GGUF = """\
With [llama.cpp](https://github.com/ggml-org/llama.cpp):

```sh
llama-completion -no-cnv -m {shell_file} -p {shell_prompt}
```

From Python, with `pip install llama-cpp-python`:

```python
from llama_cpp import Llama

model = Llama({file!r}, verbose=False)
print(model({prompt!r}, max_tokens=64)["choices"][0]["text"])
model.close()
```

With ollama:

```sh
ollama create {tag} -f Modelfile
ollama run {tag} {shell_prompt}
```

"""

_RUN_ONNX = """\
With [onnxruntime-genai](https://github.com/microsoft/onnxruntime-genai), `pip install onnxruntime-genai`:

```python
import onnxruntime_genai as genai

model = genai.Model({folder!r})
tokenizer = genai.Tokenizer(model)
settings = genai.GeneratorParams(model)
settings.set_search_options(max_length=128)
generator = genai.Generator(model, settings)
generator.append_tokens(tokenizer.encode({prompt!r}))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))
```

"""


def write_card(report: Mapping[str, Any], directory: Path, *, prompt: str = "This") -> None:
    """Write the model card README.md into a bundle's directory.

    Args:
        report: as for `write_report`; "hub_id" of "base_model" and "dataset" of "corpus" are hub ids where
            there are any; "licence" of "corpus" is what is known of the texts' licences.
        prompt: the beginning of a text, for the examples.

    Raises:
        EdgeError: the directory can't be written.
    """
    write_text(directory / "README.md", model_card(report, prompt))


def model_card(report: Mapping[str, Any], prompt: str = "This") -> str:
    """The model card's Markdown."""
    shipped, _, _ = compared(report)
    base, domain = report.get("base_model") or {}, report.get("domain")
    origin = base.get("name") or "a pretrained model"
    licence = base.get("licence")
    terms = (
        f"The weights are under the base model's licence, {licence}."
        if licence
        else ("The base model's licence is not known here: look it up before you use or share this.")
    )
    texts = get(report, "corpus", "licence")
    return _CARD.format(
        front=_front_matter(report),
        name=report["name"],
        headline=headline(report),
        version=f" {report['minigpt_edge']}" if report.get("minigpt_edge") else "",
        base=f"{origin} ({base['source']})" if base.get("source") else origin,
        domain=f" for the domain {domain}" if domain else "",
        steps=_steps(report, shipped.get("quantization"), mixed=bool(shipped.get("mix"))),
        figures="\n\n".join(f"**{t.title}**\n\n{markdown(t)}" for t in tables(report) if t.key in _IN_CARD),
        run=_run(report, prompt),
        shell_prompt=shlex.quote(prompt),
        architecture=_architecture_note(shipped.get("architecture")),
        subject=f"the domain {domain}" if domain else "the text it was made with",
        elsewhere=" (`minigpt-edge evaluate . --tasks elsewhere --beside-base` does)" if domain else "",
        advice={"law": "legal advice", "medical": "medical advice", "economics": "financial advice"}.get(
            domain or "", "source of facts"
        ),
        licence=terms,
        texts=f"- The texts: {texts}. What that means for the model's output is for its user to judge."
        if texts
        else "- The texts it was fine-tuned on have licences of their own.",
    )


def _run(report: Mapping[str, Any], prompt: str) -> str:
    """How to run the first file of each format in programs that are not ours."""
    files = [str(model.get("file")) for model in by_role(report, "shipped")]
    tag = re.sub(r"[^a-z0-9._-]+", "-", report["name"].lower())
    text = ""
    if gguf := [file for file in files if file.endswith(".gguf")]:
        quoted = {"shell_file": shlex.quote(gguf[0]), "shell_prompt": shlex.quote(prompt)}
        text += _RUN_GGUF.format(file=gguf[0], prompt=prompt, tag=tag, **quoted)
    if onnx := [file for file in files if file.endswith(".onnx")]:
        text += _RUN_ONNX.format(folder=onnx[0].rpartition("/")[0], prompt=prompt)
    return text


def _steps(report: Mapping[str, Any], quantization: str | None, *, mixed: bool) -> str:
    steps = ["the parts of the model that the domain's text needs least were removed"]
    if report.get("recovery"):
        steps.append("what was left was fine-tuned on that text")
    if quantization and quantization.upper() not in ("F16", "BF16", "F32"):
        how = f"a mix of types, most of them {quantization}" if mixed else quantization
        steps.append(f"the file was quantized to {how}")
    return steps[0] if len(steps) == 1 else ", ".join(steps[:-1]) + " and " + steps[-1]


def markdown(table: Table) -> str:
    """A table as Markdown, its note below."""
    rows = [
        [cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (table.columns, *table.rows)
    ]
    rows.insert(1, ["---"] + ["--:"] * (len(table.columns) - 1))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + (f"\n\n{table.note}" if table.note else "")


def write_modelfile(
    directory: Path,
    *,
    model_file: str,
    chat_template: str | None,
    stop: Sequence[str] = (),
    context_length: int | None = None,
) -> None:
    """Write ollama's Modelfile into a bundle's directory.

    Args:
        chat_template: the model's Jinja template; None for a model without one.
        stop: texts of the tokens that end an answer.
        context_length: tokens of context to ask ollama for.
    """
    text = modelfile(
        model_file=model_file, chat_template=chat_template, stop=stop, context_length=context_length
    )
    write_text(directory / "Modelfile", text)


def modelfile(
    *, model_file: str, chat_template: str | None, stop: Sequence[str] = (), context_length: int | None = None
) -> str:
    """The Modelfile's text.

    A ChatML template is written in ollama's language, with the system message it adds of its own accord. Any
    other is left for ollama to recognise in the GGUF file. Without one the prompt goes to the model as it is.
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
    if context_length:
        lines.append(f"PARAMETER num_ctx {context_length}")
    return "\n".join(lines) + "\n"


_CHATML = """\
{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""


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


def _front_matter(report: Mapping[str, Any]) -> str:
    import yaml

    base, domain = report.get("base_model") or {}, report.get("domain")
    licence = str(base.get("licence") or "").lower()
    front: dict[str, Any] = {"license": licence if licence in _HUB_LICENCES else "other"}
    if front["license"] == "other" and licence:
        front["license_name"] = base["licence"]
    hub_id = base.get("hub_id") or (base.get("name") if "/" in str(base.get("name")) else None)
    if hub_id:
        front |= {"base_model": hub_id, "base_model_relation": "finetune"}
    if dataset := get(report, "corpus", "dataset"):
        front["datasets"] = [dataset]
    endings = {str(model.get("file")).rpartition(".")[2] for model in by_role(report, "shipped")}
    formats = [name for name in ("gguf", "onnx") if name in endings]
    front["pipeline_tag"] = "text-generation"
    if formats:
        front["library_name"] = formats[0]
    front["tags"] = ["minigpt-edge", *formats, "pruned", *([domain] if domain else [])]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _architecture_note(architecture: str | None) -> str:
    if architecture != "deci":
        return ""
    return (
        "\nThe blocks have different sizes, so the file's architecture is `deci`: llama.cpp reads it, "
        "a program with an old llama.cpp inside may not.\n"
    )
