"""The Python API: build, evaluate and load do what the commands do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from source import PACKAGES
from tiny_build import write_corpus, write_model

import minigpt_edge
from minigpt_edge.cli import cli
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.generate.chat import ChatTemplateError

pytestmark = pytest.mark.whole

BUNDLE = Path(__file__).with_name("data") / "bundle-0.1.0.zip"
PROMPT = "Licence 1\n\nThe licensee shall not"
QUICK: dict[str, Any] = {
    **{"target": "gguf-q8", "min_count": 1, "sparsity": 0.2, "calibration_tokens": 4096},
    **{"threads": 1, "no_recover": True, "no_baseline": True, "offline": True, "quiet": True},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, corpus/, bundle.zip, and a cache with the domain clauses."""
    folder = tmp_path_factory.mktemp("api")
    write_corpus(folder / "corpus")
    write_model(folder / "model", folder / "corpus", blocks=2)
    shutil.copy(BUNDLE, folder / "bundle.zip")
    (folder / "cache" / "domains").mkdir(parents=True)
    (folder / "cache" / "domains" / "clauses.toml").write_text(
        'title = "clauses"\ndefault = "files"\n'
        f'[sources.files]\nkind = "files"\npath = "{folder / "corpus"}"\n'
    )
    return folder


@pytest.fixture(autouse=True)
def cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_EDGE_CACHE", str(place / "cache"))


@pytest.fixture(scope="module")
def built(place: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIGPT_EDGE_CACHE", str(place / "cache"))
        return minigpt_edge.build("clauses", model=str(place / "model"), out=str(place / "out"), **QUICK)


def test_importing_the_package_is_light() -> None:
    path = [str(folder.parent) for folder in PACKAGES.values()]
    code = f"import sys; sys.path[:0] = {path!r}\nimport minigpt_edge\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "click", "rich", "llama_cpp"} & set(loaded.stdout.split())


def test_importing_a_subpackage_leaves_the_functions() -> None:
    import minigpt_edge.commands.build
    import minigpt_edge.commands.evaluate
    import minigpt_edge.evaluation.run

    assert minigpt_edge.build.__module__ == minigpt_edge.evaluate.__module__ == "minigpt_edge"


def test_a_build_returns_its_bundle_and_report(place: Path, built: Any) -> None:
    assert built.directory == place / "out" and not built.unchanged
    assert (built.checkpoint / "config.json").is_file()
    report = json.loads((built.directory / "report.json").read_text())
    assert built.report.to_json() == report
    assert report["command"].startswith("minigpt_edge.build(domain='clauses', target='gguf-q8', model=")
    again = minigpt_edge.build("clauses", model=str(place / "model"), out=place / "out", **QUICK)
    assert again.unchanged and again.directory == built.directory


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domain": "nowhere"}, "nowhere"),
        ({"domain": "clauses", "no_recover": True, "recover_until": "dense"}, "contradict"),
        ({"domain": "clauses", "max_size": "a lot"}, "a lot"),
    ],
)
def test_a_build_refuses_as_the_command_does(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        minigpt_edge.build(**options, quiet=True)


def test_an_unknown_option_is_a_type_error(built: Any) -> None:
    with pytest.raises(TypeError, match="sparsety"):
        minigpt_edge.build("clauses", sparsety=0.3)
    with pytest.raises(TypeError, match="limmit"):
        minigpt_edge.evaluate(built.directory, limmit=3)


def test_evaluate_returns_what_the_command_prints(built: Any) -> None:
    given = ["--tasks", "text,completion", "--limit", "5", "--threads", "1", "--offline", "--json"]
    printed = CliRunner().invoke(cli, ["evaluate", str(built.directory), *given])
    assert printed.exit_code == 0, printed.output
    options: dict[str, Any] = {"limit": 5, "threads": 1, "offline": True, "quiet": True}
    found = minigpt_edge.evaluate(built.directory, ["text", "completion"], **options)
    assert found == json.loads(printed.stdout)
    only = minigpt_edge.evaluate(str(built.directory), "text", **options)
    assert only["tasks"] == {"text:clauses": found["tasks"]["text:clauses"]}
    with pytest.raises(UsageError, match="source"):
        minigpt_edge.evaluate(built.directory, source="elsewhere")


@pytest.mark.parametrize("file", ["golden-f16.gguf", "onnx-int8"])
def test_a_bundle_generates_as_the_command_does(place: Path, file: str) -> None:
    given = ["--file", file, "--max-tokens", "8", "--seed", "2", "--threads", "1", "--json"]
    printed = CliRunner().invoke(cli, ["run", str(place / "bundle.zip"), PROMPT, *given])
    assert printed.exit_code == 0, printed.output
    with minigpt_edge.load(place / "bundle.zip", file=file, threads=1) as model:
        assert model.generate(PROMPT, max_tokens=8, seed=2) == json.loads(printed.stdout)["text"]
        assert model.manifest["name"] == "golden"
        stream = model.stream(PROMPT, max_tokens=8, seed=2)
        assert "".join(list(stream)) == json.loads(printed.stdout)["text"]
        assert stream.stats()["tokens"] == 8 and stream.finish_reason == "length"
        with pytest.raises(UsageError, match="temperature"):
            model.generate(PROMPT, temperature=-1)


def test_a_score_is_the_one_that_evaluate_gives(place: Path, built: Any) -> None:
    stages = sorted((place / "cache" / "work").glob("corpus-*/test.texts.json"))
    windows = json.loads(stages[0].read_text())["windows"]
    found = minigpt_edge.evaluate(built.directory, "text", threads=1, offline=True, quiet=True)
    with minigpt_edge.load(built.directory, threads=1) as model:
        scores = [model.score(window["text"]) for window in windows]
        assert model.generate(PROMPT, max_tokens=2, temperature=0)  # scoring leaves generation as it was
        with pytest.raises(UsageError, match="empty"):
            model.score("")
    expected = found["tasks"]["text:clauses"]
    assert sum(score.nll for score in scores) == pytest.approx(expected["nll"])
    assert sum(score.bytes for score in scores) == expected["bytes"]
    assert scores[0].bits_per_byte == pytest.approx(expected["bits_per_byte"], rel=0.2)


def test_a_chat_needs_a_template_and_uses_it(place: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "The licensee?"}]
    with minigpt_edge.load(place / "bundle.zip", threads=1) as model:
        with pytest.raises(ChatTemplateError):
            model.chat(messages)
        folder = tmp_path / "onnx"
        shutil.copytree(model.path.parent / "onnx-int8", folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    with minigpt_edge.load(folder, threads=1) as model:
        pieces = list(model.stream(messages, max_tokens=6, temperature=0))
        assert model.chat(messages, max_tokens=6, temperature=0) == "".join(pieces) != ""
        opened = [*messages, {"role": "assistant", "content": "The licensor"}]
        given = {"continue_final_message": True, "tools": [{"name": "f"}], "of_its_own": 1}
        assert model.chat(opened, max_tokens=6, temperature=0, template=given) != "".join(pieces)
        with pytest.raises(UsageError, match="without a chat template"):
            model.stream("The licensee", template=given)


def test_a_changed_bundle_is_refused(place: Path, tmp_path: Path, built: Any) -> None:
    bundle = shutil.copytree(built.directory, tmp_path / "bundle")
    with open(next(bundle.glob("*.gguf")), "ab") as file:
        file.write(b"x")
    with pytest.raises(EdgeError, match="gguf"):
        minigpt_edge.load(bundle)
    minigpt_edge.load(bundle, check=False, threads=1).close()
