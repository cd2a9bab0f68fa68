"""Everything the program parses: how to make a sound sample of it, and how it is read."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latency_reports import make_report
from served import make_requests, read_requests
from tiny_build import write_corpus, write_model
from tiny_gguf import CHAT_TEMPLATE, TEXT, make_gguf, make_tokenizer, texts_content
from tiny_onnx import make_checkpoint, make_onnx

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Subject:
    """A kind of input.

    Attributes:
        make: writes a sound sample into an empty folder.
        files: the file names, of those it made, that are to be changed, one at a time.
        read: reads the sample whose changed file is given, as a command would; it may raise EdgeError alone.
        share: of the cases, beside the other subjects'; what takes long gets less.
    """

    make: Callable[[Path], None]
    files: tuple[str, ...]
    read: Callable[[Path], None]
    share: float = 1.0


def command(*arguments: str | Path) -> None:
    """A command of `minigpt-edge` in this process, its output thrown away."""
    from minigpt_edge.cli import cli

    with contextlib.redirect_stdout(io.StringIO()):
        cli.main([str(argument) for argument in arguments], standalone_mode=False)


_DIALECTS: dict[str, dict[str, Any]] = {
    "a.csv": {},
    "b.csv": {"delimiter": ";", "quotechar": "'", "quoting": csv.QUOTE_ALL},
    "c.csv": {"doublequote": False, "escapechar": "\\"},
    "a.tsv": {"delimiter": "\t"},
}


def make_texts(folder: Path) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    def some(name: str) -> list[str]:
        """Texts of their own for each file, so that none is dropped as another's."""
        return [" ".join(random.Random(f"{name} {n}").choices(TEXT.split(), k=60)) for n in range(20)]

    def lines(name: str) -> bytes:
        return "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in some(name)).encode()

    (folder / "a.txt").write_text("\n\n".join(some("txt")))
    (folder / "a.md").write_text("# Title\n\n" + TEXT)
    (folder / "a.jsonl").write_bytes(lines("jsonl"))
    (folder / "a.json").write_text(json.dumps({"data": [{"text": text, "id": 1} for text in some("json")]}))
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines("gz"), mtime=0))
    with pa.output_stream(folder / "a.jsonl.zst", compression="zstd") as packed:
        packed.write(lines("zst"))
    for name, how in _DIALECTS.items():
        with (folder / name).open("w", newline="") as file:
            texts = [(n, f'"{text[:40]}",\n{text}') for n, text in enumerate(some(name))]
            csv.writer(file, **how).writerows([("id", "text"), *texts])
    pq.write_table(pa.table({"text": some("parquet")}), folder / "a.parquet")
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": some("saved")}).save_to_disk(str(folder / "saved"))


def read_texts(path: Path) -> None:
    from minigpt_edge.data.corpus import build_corpus, read_sources
    from minigpt_edge.data.sources import source_of

    folder = path.parent.parent if path.parent.name == "saved" else path.parent
    tokenizer = folder.parent / "tokenizer.json"
    if not tokenizer.exists():
        make_tokenizer().save(str(tokenizer))
    build_corpus(
        read_sources([source_of(str(folder))], offline=True),
        folder.parent / "out",
        base_tokenizer_path=tokenizer,
        document_start="<|endoftext|>",
        window_tokens=64,
    )


def make_plan(folder: Path) -> None:
    from minigpt_edge.prune.plan import BlockPlan, Plan, write_plan

    blocks = tuple(BlockPlan((0, 1), tuple(range(0, 96, 3))) for _ in range(4))
    write_plan(Plan("a" * 64, "wanda", tuple(range(300)), blocks, (1000, 600)), folder / "plan.json")


def read_plan(path: Path) -> None:
    from minigpt_edge.prune import plan

    config = {"num_hidden_layers": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 400}
    plan.check_plan(plan.read_plan(path), config, "a" * 64, path)
    command("inspect", path)


def run_example(work: Path) -> Path:
    from minigpt_edge.stages.stage import StageSpec, run_stage

    def make(out: Path) -> dict[str, int]:
        (out / "weights.bin").write_bytes(bytes(100))
        return {"value": 1}

    code = ("minigpt_edge.prune.plan",)
    stage = run_stage(
        work,
        StageSpec(
            "example",
            settings={"a": 1},
            inputs={"b": "c"},
            code=code,
        ),
        make,
    )
    assert stage.metrics["value"] == 1, "a changed manifest was believed"
    return stage.path


def make_stage(folder: Path) -> None:
    run_example(folder).rename(folder / "example")


def read_stage(path: Path) -> None:
    """The stage gets back the name that it is found under."""
    work = path.parent.parent / "work"
    found = run_example(work)
    shutil.rmtree(found)
    shutil.copytree(path.parent, found)
    run_example(work)


def make_reports(folder: Path) -> None:
    for name, seed in (("a.json", 1), ("b.json", 2)):
        (folder / name).write_text(json.dumps(make_report(seed)))


def read_reports(path: Path) -> None:
    command("inspect", path)
    command("compare", path.with_name("a.json"), path.with_name("b.json"))


DOMAIN = """title = "A domain"
default = "own"
task = "text"
language = "en"
words = 1000
questions = ["medmcqa"]

[sources.own]
kind = "package"
licence = "MIT"
package = "example==1.0"
sha256 = "00"
reader = "wikipedia"
members = ["a/*.txt"]
options = { include = "b", share = "0.5" }

[sources.hub]
kind = "hub"
licence = "MIT"
dataset = "org/name"
text_column = "text"
"""


def make_domain(folder: Path) -> None:
    (folder / "mine.toml").write_text(DOMAIN)


def read_domain(path: Path) -> None:
    command("domains", "add", path)
    command("domains", "--json")


def make_model(folder: Path) -> None:
    """A model as transformers writes it, small enough for thousands of readings."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    write_model(folder / "model", write_corpus(folder / "corpus", documents=4), config=config)
    shutil.rmtree(folder / "corpus")
    for path in (folder / "model").iterdir():
        path.rename(folder / path.name)
    (folder / "model").rmdir()
    add_adapter(folder, folder / "adapter")


def read_model(path: Path) -> None:
    """Convert, trim, load, write as GGUF: what a build does with a model of unknown origin, or an adapter."""
    from minigpt_edge.models.base_model import resolve_model
    from minigpt_edge.models.checkpoint import load_model
    from minigpt_edge.prune.vocabulary.choose import choose_tokens, count_tokens, open_tokenizer
    from minigpt_edge.prune.vocabulary.trim import trim_tokenizer
    from minigpt_edge_export.decoder import read_checkpoint
    from minigpt_edge_export.gguf.write import write_gguf
    from minigpt_edge_runtime.files import read_json

    if path.name in ADAPTER_FILES:
        resolve_model(str(path.parent.parent), adapter=str(path.parent), offline=True)
        return
    command("inspect", path.parent)
    base = resolve_model(str(path.parent), offline=True)
    data = read_json(base.tokenizer)
    kept = choose_tokens(data, count_tokens(open_tokenizer(data), [TEXT]))
    trim_tokenizer(base.path, path.parent / "trimmed", kept)
    load_model(base.path)
    write_gguf(read_checkpoint(base.path), path.parent / "out.gguf")


def add_adapter(model: Path, folder: Path) -> None:
    """A LoRA adapter of a few weights, beside the model that is its base."""
    import torch
    from safetensors.torch import save_file

    hidden = json.loads((model / "config.json").read_text())["hidden_size"]
    layer = "base_model.model.model.layers.0.self_attn.o_proj"
    shapes = {"lora_A": (2, hidden), "lora_B": (hidden, 2)}
    folder.mkdir()
    save_file({f"{layer}.{n}.weight": torch.ones(s) for n, s in shapes.items()}, folder / ADAPTER_FILES[1])
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "rank_pattern": {}}
    settings |= {"target_modules": ["o_proj"], "layers_to_transform": [0], "modules_to_save": None}
    (folder / ADAPTER_FILES[0]).write_text(json.dumps({**settings, "base_model_name_or_path": ".."}))


def make_gguf_file(folder: Path) -> None:
    make_gguf(folder / "a.gguf", make_tokenizer())


def read_gguf(path: Path) -> None:
    """Inspect it, run it in llama.cpp, and take it as a base model."""
    from minigpt_edge.models.base_model import resolve_model
    from minigpt_edge_runtime.errors import EdgeError

    command("inspect", path)
    with contextlib.suppress(EdgeError):
        resolve_model(str(path), offline=True)
    _generate(path)


def _generate(path: Path) -> None:
    from minigpt_edge_runtime.engines.open import open_engine
    from minigpt_edge_runtime.generate.chat import chat_ids

    with open_engine(path, 64, 1) as engine:
        engine.detokenize(engine.tokenize(TEXT))
        engine.eval([engine.document_start(), *engine.tokenize("The licence")])
        if engine.chat_templates:
            chat_ids(engine, [{"role": "user", "content": "Hello"}])


def make_onnx_folder(folder: Path) -> None:
    gguf = make_gguf(folder / "a.gguf", make_tokenizer())
    made = make_onnx(gguf, folder / "onnx", make_tokenizer()).parent
    for path in made.iterdir():
        path.rename(folder / path.name)
    made.rmdir()
    gguf.unlink()
    shutil.rmtree(folder / "onnx-checkpoint")


def read_onnx(path: Path) -> None:
    model = path.with_name("model.onnx")
    command("inspect", model)
    _generate(model)


def make_bundle(folder: Path) -> None:
    from minigpt_edge_runtime.bundle.manifest import Contents, write_manifest
    from minigpt_edge_runtime.bundle.verify import make_check

    tokenizer = make_tokenizer()
    make_gguf(folder / "model.gguf", tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))
    questions = [{"context": TEXT[:40], "choices": [TEXT[40:60], " z"], "answer": 0}]
    (folder / "held-out.json").write_text(
        json.dumps({"format": 1, **texts_content(), "questions": questions})
    )
    write_manifest(
        folder,
        Contents(
            name="tiny",
            model_files=["model.gguf"],
            base_model={"name": "random", "licence": "Apache-2.0"},
            licences=["Apache-2.0"],
            domain="law",
            corpus_sha256="0" * 64,
            targets=["gguf-f16"],
            document_start="<|endoftext|>",
            checks={"model.gguf": make_check(folder / "model.gguf", TEXT, "<|endoftext|>", threads=1)},
        ),
    )


def read_bundle(path: Path) -> None:
    """Verify and inspect it, and generate as `run` does."""
    from minigpt_edge_runtime.errors import EdgeError

    with contextlib.suppress(EdgeError, SystemExit):
        command("verify", path.parent, "--threads", "1")
    command("inspect", path.parent)
    command("run", path.parent, "The", "--max-tokens", "1", "--threads", "1")


def make_zip(folder: Path) -> None:
    make_bundle(folder)
    made = shutil.make_archive(str(folder.parent / "packed"), "zip", folder)
    for path in folder.iterdir():
        path.unlink()
    shutil.move(made, folder / "bundle.zip")


def read_zip(path: Path) -> None:
    command("inspect", path)


SWEEP = """out = "swept"
threads = 1
jobs = 2

[options]
model = "./model"
corpus = ["a", "b"]
recover-tokens = 16384
no-baseline = true

[vary]
sparsity = [0.1, 0.2]
target = ["gguf-q8", ["gguf-f16", "onnx-int8"]]
"""


def make_sweep(folder: Path) -> None:
    (folder / "sweep.toml").write_text(SWEEP)


def read_sweep(path: Path) -> None:
    from minigpt_edge.stages.sweep import read_sweep

    flags = {"no-baseline": True}
    options = ("model", "corpus", "recover-tokens", "sparsity", "target")
    read_sweep(path, {**dict.fromkeys(options, False), **flags}, cores=4)


def make_held_out(folder: Path) -> None:
    questions = [{"context": TEXT[:40], "choices": [TEXT[40:60], " z"], "answer": 0}]
    (folder / "held-out.json").write_text(
        json.dumps({"format": 1, **texts_content(), "questions": questions})
    )


def read_held_out(path: Path) -> None:
    from minigpt_edge_runtime.scoring import held_out

    held_out.read_held_out(path)


def make_stored(folder: Path) -> None:
    gguf = make_gguf(folder / "a.gguf", make_tokenizer())
    made = make_checkpoint(gguf, folder / "made", make_tokenizer())
    for path in made.iterdir():
        path.rename(folder / path.name)
    made.rmdir()
    gguf.unlink()


def read_stored(path: Path) -> None:
    from minigpt_edge_export.decoder import read_checkpoint
    from minigpt_edge_export.onnx.write import write_onnx
    from minigpt_edge_export.targets import PRECISIONS

    write_onnx(read_checkpoint(path.parent), path.parent / "out", PRECISIONS["int4"])


def make_templates(folder: Path) -> None:
    """Templates with what real ones use, and simple ones in the settings."""
    real = Path(__file__).parents[1] / "tiny" / "templates"
    (folder / "additional_chat_templates").mkdir()
    shutil.copyfile(real / "smollm3.jinja", folder / "chat_template.jinja")
    shutil.copyfile(real / "hermes.tool_use.jinja", folder / "additional_chat_templates" / "tool_use.jinja")
    listed = [{"name": name, "template": CHAT_TEMPLATE} for name in ("default", "tool_use")]
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": listed}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def read_templates(path: Path) -> None:
    """Render with and without tools, and write the Modelfile and the fields of a GGUF file."""
    from minigpt_edge.ship.modelfile import modelfile
    from minigpt_edge_export.gguf.chat_templates import self_contained
    from minigpt_edge_runtime.formats.tokenizer_files import (
        chat_templates,
        choose_template,
        read_tokenizer_config,
        special_texts,
    )
    from minigpt_edge_runtime.generate import template_bounds
    from minigpt_edge_runtime.generate.chat import render_chat
    from minigpt_edge_runtime.generate.chat_inputs import ChatInputs

    template_bounds.SECONDS = 0.2
    folder = path.parents[1] if path.name == "tool_use.jinja" else path.parent
    if path.suffix == ".json":  # the files would come before it
        shutil.rmtree(folder / "additional_chat_templates")
        (folder / "chat_template.jinja").unlink()
    settings = read_tokenizer_config(folder)
    templates, special = chat_templates(folder, settings), special_texts(settings)
    self_contained(templates, special, {})
    modelfile("m.gguf", templates.get("default"), ["</s>"], special)
    messages = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "a", "thinking": "b"}]
    function = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
    for tools in (None, [{"type": "function", "function": function}]):
        if (template := choose_template(templates, tools is not None)) is not None:
            render_chat(template, messages, special, ChatInputs(tools))


_MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
_TEXT_FILES = (
    *("a.txt", "a.md", "a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "b.csv", "c.csv", "a.tsv"),
    *("a.parquet", "saved/state.json", "saved/dataset_info.json", "saved/data-00000-of-00001.arrow"),
)
_ONNX_FILES = ("model.onnx", "genai_config.json", "tokenizer.json", "tokenizer_config.json")
_TEMPLATE_FILES = (
    *("chat_template.jinja", "additional_chat_templates/tool_use.jinja"),
    "tokenizer_config.json",
)
SUBJECTS: dict[str, Subject] = {
    "corpus": Subject(make_texts, _TEXT_FILES, read_texts, 2),
    "plan": Subject(make_plan, ("plan.json",), read_plan),
    "stage": Subject(make_stage, ("example/manifest.json",), read_stage),
    "report": Subject(make_reports, ("a.json",), read_reports),
    "domain": Subject(make_domain, ("mine.toml",), read_domain),
    "template": Subject(make_templates, _TEMPLATE_FILES, read_templates, 2),
    "sweep": Subject(make_sweep, ("sweep.toml",), read_sweep),
    "held-out": Subject(make_held_out, ("held-out.json",), read_held_out),
    "bundle": Subject(make_bundle, ("manifest.json", "tokenizer.json", "model.gguf"), read_bundle),
    "zip": Subject(make_zip, ("bundle.zip",), read_zip),
    "model": Subject(make_model, (*_MODEL_FILES, *(f"adapter/{n}" for n in ADAPTER_FILES)), read_model, 1.5),
    "checkpoint": Subject(make_stored, _MODEL_FILES, read_stored),
    "gguf": Subject(make_gguf_file, ("a.gguf",), read_gguf, 2),
    "onnx": Subject(make_onnx_folder, _ONNX_FILES, read_onnx),
    "request": Subject(make_requests, ("chat.json", "completion.json"), read_requests),
}
