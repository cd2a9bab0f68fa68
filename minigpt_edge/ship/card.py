"""The model card of a bundle: its README.md, with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from minigpt_edge.report.build_report import BuildReport
from minigpt_edge.report.tables import headline, markdown, tables
from minigpt_edge_runtime.files import write_text

# The licences that the hub knows by name; any other is "other" there.
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
_ADVICE = {"law": "legal advice", "medical": "medical advice", "economics": "financial advice"}
_IN_CARD = ("models", "speed", "pruned")

_CARD = """\
---
{front}---

# {name}

{headline}
{warnings}
Made by minigpt-edge{version} from {base}{domain}: {steps}.

{figures}

## Run it

{run}With minigpt-edge's own runtime, in this directory:

```sh
minigpt-edge-runtime run . {shell_prompt}
minigpt-edge-runtime verify .
```
{architecture}
## Limits

- It was made for {subject}. Expect it to be worse than the base model on other subjects, in other \
languages and in general knowledge, which were not measured{elsewhere}.
- It continues text. Pruning and fine-tuning used no instructions: its answers to questions may be \
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

_DECI = """
The blocks have different sizes, so the file's architecture is `deci`: llama.cpp reads it, a program \
with an old llama.cpp inside may not.
"""


def write_card(report: BuildReport, directory: Path, *, prompt: str = "This") -> None:
    """Write the model card README.md into a bundle's directory.

    Args:
        prompt: the beginning of a text, for the examples.

    Raises:
        EdgeError: the directory can't be written.
    """
    write_text(directory / "README.md", model_card(report, prompt))


def model_card(report: BuildReport, prompt: str = "This") -> str:
    """The model card's Markdown."""
    shipped, _, _ = report.compared()
    base, domain, texts = report.base_model, report.domain, report.corpus.licence
    origin = base.name or "a pretrained model"
    licence = (
        f"The weights are under the base model's licence, {base.licence}."
        if base.licence
        else "The base model's licence is not known here: look it up before you use or share this."
    )
    return _CARD.format(
        front=_front_matter(report),
        name=report.name,
        headline=headline(report),
        warnings="".join(
            f"\n> **{'Warning' if one.sure else 'Note'}.** {one.text}\n" for one in report.warnings
        ),
        version=f" {report.minigpt_edge}" if report.minigpt_edge else "",
        base=f"{origin} ({base.source})" if base.source else origin,
        domain=f" for the domain {domain}" if domain else "",
        steps=_steps(report),
        figures="\n\n".join(f"**{t.title}**\n\n{markdown(t)}" for t in tables(report) if t.key in _IN_CARD),
        run=_run(report, prompt),
        shell_prompt=shlex.quote(prompt),
        architecture=_DECI if shipped.architecture == "deci" else "",
        subject=f"the domain {domain}" if domain else "the text it was made with",
        elsewhere=" (`minigpt-edge evaluate . --tasks elsewhere --beside-base` measures them)" * bool(domain),
        advice=_ADVICE.get(domain or "", "source of facts"),
        licence=licence,
        texts=f"- The texts: {texts}. What that means for the model's output is for its user to judge."
        if texts
        else "- The texts it was fine-tuned on have licences of their own.",
    )


def _run(report: BuildReport, prompt: str) -> str:
    """How to run the first file of each format in programs that are not ours."""
    files = [model.file or "" for model in report.by_role("shipped")]
    tag = re.sub(r"[^a-z0-9._-]+", "-", report.name.lower())
    text = ""
    if gguf := [file for file in files if file.endswith(".gguf")]:
        quoted = {"shell_file": shlex.quote(gguf[0]), "shell_prompt": shlex.quote(prompt)}
        text += _RUN_GGUF.format(file=gguf[0], prompt=prompt, tag=tag, **quoted)
    if onnx := [file for file in files if file.endswith(".onnx")]:
        text += _RUN_ONNX.format(folder=onnx[0].rpartition("/")[0], prompt=prompt)
    return text


def _steps(report: BuildReport) -> str:
    """What was done to the base model, as one clause; of the file, to the first one shipped."""
    shipped, _, _ = report.compared()
    steps = ["the parts of the model that the domain's text needs least were removed"]
    if report.recovery:
        aware = f" (quantization-aware, for {report.recovery.grid})" if report.recovery.grid else ""
        steps.append(f"what was kept was fine-tuned on that text{aware}")
    if (kind := shipped.quantization) and kind.upper() not in ("F16", "BF16", "F32"):
        how = f"a mix of types, most of them {kind}" if shipped.mix else kind
        steps.append(f"the file was quantized to {how}")
    return steps[0] if len(steps) == 1 else ", ".join(steps[:-1]) + " and " + steps[-1]


def _front_matter(report: BuildReport) -> str:
    import yaml

    base, licence = report.base_model, (report.base_model.licence or "").lower()
    front: dict[str, Any] = {"license": licence if licence in _HUB_LICENCES else "other"}
    if front["license"] == "other" and licence:
        front["license_name"] = base.licence
    if base.name and "/" in base.name:  # a hub id: the hub refuses any other name
        front |= {"base_model": base.name, "base_model_relation": "finetune"}
    endings = {(model.file or "").rpartition(".")[2] for model in report.by_role("shipped")}
    formats = [name for name in ("gguf", "onnx") if name in endings]
    front["pipeline_tag"] = "text-generation"
    if formats:
        front["library_name"] = formats[0]
    front["tags"] = ["minigpt-edge", *formats, "pruned", *([report.domain] if report.domain else [])]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
