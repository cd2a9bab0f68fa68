"""The whole build on a tiny model: real stages, real llama.cpp, resume, plans, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from source import ROOT
from tiny_build import QUICK, SMALL, write_corpus, write_model

from minigpt_edge.data.stage import corpus_stage

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/ and corpus/, and the cache of all builds of this module."""
    folder = tmp_path_factory.mktemp("build")
    write_corpus(folder / "corpus")
    write_model(folder / "model", folder / "corpus")
    return folder


def environment(place: Path) -> dict[str, str]:
    path = os.pathsep.join(str(ROOT / part) for part in (".", "export", "runtime"))
    return {**os.environ, "MINIGPT_EDGE_CACHE": str(place / "cache"), "PYTHONPATH": path, "COLUMNS": "200"}


def command(place: Path, *options: str) -> list[str]:
    given = ["--model", str(place / "model"), "--corpus", str(place / "corpus")]
    small = QUICK if "--plan" in options else SMALL  # a plan says itself how much goes
    return [sys.executable, "-m", "minigpt_edge", "build", *given, *small, *options]


def run(place: Path, *options: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(place, *options),
        cwd=folder or place,
        env=environment(place),
        capture_output=True,
        text=True,
        timeout=600,
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def built(place: Path) -> Path:
    """The bundle of the default small build."""
    done = run(place, "--out", "out")
    assert done.returncode == 0, done.stderr
    return place / "out"


def test_bundle_is_complete_and_reported(built: Path) -> None:
    report = json.loads((built / "report.json").read_text())
    manifest = json.loads((built / "manifest.json").read_text())
    assert abs(report["sparsity"]["achieved"] - 0.2) <= 0.005
    corpus = report["corpus"]
    gone = sum(corpus["dropped"][why] for why in ("short", "identical", "near_duplicate"))
    assert corpus["documents"] + gone == corpus["documents_read"]
    assert "near duplicate rate" in (built / "report.html").read_text()
    roles = [model["role"] for model in report["models"]]
    assert roles == ["dense-f16", "dense-quantized", "shipped"]
    shipped = report["models"][-1]
    assert shipped["bytes"] == (built / shipped["file"]).stat().st_size
    assert shipped["parameters"] == report["sparsity"]["parameters_after"]
    assert (
        report["quality_torch"]["recovered"]["bits_per_byte"]
        < report["quality_torch"]["pruned"]["bits_per_byte"]
    )
    notice = (built / "NOTICE").read_text()
    assert "model" in notice and "corpus" in notice and notice.count("licence: not stated") == 2
    for name in (
        "report.html",
        "README.md",
        "NOTICE",
        "Modelfile",
        "tokenizer.json",
        "plan.json",
        shipped["file"],
    ):
        assert manifest["files"][name]["sha256"] == sha256(built / name)


def test_the_waterfall_goes_from_the_dense_model_to_the_file(built: Path) -> None:
    from minigpt_edge.report.build_report import read_report

    report = read_report(built / "report.json")
    stations, steps = report.quality_torch, report.waterfall.steps
    bits = {step.name: step.bits_per_byte for step in steps}
    assert list(bits) == ["dense", "vocabulary", "neurons", "recovery", "quantization"]
    assert bits["dense"] == stations.dense.bits_per_byte
    assert bits["neurons"] == stations.pruned.bits_per_byte != bits["vocabulary"]
    assert bits["recovery"] == stations.recovered.bits_per_byte
    assert bits["quantization"] == report.models[-1].validation.bits_per_byte
    assert report.waterfall.windows == report.models[-1].validation.windows == stations.dense.windows
    shipped = bits["dense"] + sum(change for _, change in report.waterfall.changes())
    assert shipped == pytest.approx(bits["quantization"])
    assert report.warnings == ()  # it is better than the dense model
    assert 'id="waterfall"' in (built / "report.html").read_text()


def test_the_file_generates_in_llama_cpp_itself(built: Path) -> None:
    import llama_cpp

    model = llama_cpp.Llama(str(next(built.glob("*.gguf"))), n_ctx=128, verbose=False)
    try:
        text = model("The licensee shall", max_tokens=12, temperature=0)["choices"][0]["text"]
    finally:
        model.close()
    assert text.strip()


def test_a_second_build_does_nothing(place: Path, built: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in built.iterdir()}
    done = run(place, "--out", "out")
    assert done.returncode == 0
    assert "nothing to do" in done.stderr
    assert {path.name: path.stat().st_mtime_ns for path in built.iterdir()} == before


def test_run_and_verify_accept_the_bundle(place: Path, built: Path) -> None:
    program = [sys.executable, "-m", "minigpt_edge"]
    said = subprocess.run(
        [*program, "run", str(built), "The licensee", "--greedy", "--max-tokens", "8"],
        env=environment(place), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert said.returncode == 0 and said.stdout.strip(), said.stderr
    checked = subprocess.run(
        [*program, "verify", str(built)], env=environment(place), capture_output=True, text=True, timeout=120
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    "stage",
    [
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("corpus", "prune", "export-", "export-gguf-q8")),
        "recover",
    ],
)
def test_killed_anywhere_it_resumes_to_the_same_file(
    place: Path, built: Path, tmp_path: Path, stage: str
) -> None:
    cache = tmp_path / "cache"
    changed = {**environment(place), "MINIGPT_EDGE_CACHE": str(cache)}
    options = ("--out", str(tmp_path / "again"), "--no-baseline")
    process = subprocess.Popen(
        command(place, *options), cwd=place, env=changed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not list((cache / "work").glob(f"{stage}*.partial")):
        assert process.poll() is None, f"the build ended before {stage} began"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "again" / "manifest.json").exists()
    done = subprocess.run(
        command(place, *options), cwd=place, env=changed, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    first, second = next(built.glob("*.gguf")), next((tmp_path / "again").glob("*.gguf"))
    assert model_tensors(first) == model_tensors(second)


def model_tensors(path: Path) -> str:
    """sha256 of a GGUF's tensor data: the header holds the bundle's name."""
    from gguf import GGUFReader

    digest = hashlib.sha256()
    for tensor in GGUFReader(path).tensors:
        digest.update(tensor.name.encode())
        digest.update(tensor.data.tobytes())
    return digest.hexdigest()


def test_a_plan_is_followed(place: Path, built: Path) -> None:
    plan = json.loads((built / "plan.json").read_text())
    done = run(place, "--out", "planned", "--plan", "out/plan.json", "--no-recover", "--no-baseline")
    assert done.returncode == 0, done.stderr
    again = json.loads((place / "planned" / "plan.json").read_text())
    assert again["blocks"] == plan["blocks"]
    assert again["vocabulary"] == plan["vocabulary"]


def test_the_current_folder_may_become_the_bundle(place: Path, built: Path) -> None:
    (place / "here").mkdir()
    done = run(place, "--out", ".", "--no-baseline", folder=place / "here")
    assert done.returncode == 0, done.stderr
    assert (place / "here" / "here-q8_0.gguf").is_file() and ". is ready" in done.stderr


def test_a_changed_corpus_is_read_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, and under ~, which is not spelt out in the path; what is in it is told each time."""
    from minigpt_edge.models import base_model
    from minigpt_edge.recipe import Recipe
    from minigpt_edge.stages.console import Log
    from minigpt_edge.stages.context import BuildContext

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINIGPT_EDGE_CACHE", str(place / "cache"))
    shutil.copytree(place / "corpus", tmp_path / "texts")
    recipe = Recipe(corpus=("~/texts",), calibration_tokens=4096)
    base = base_model.resolve_model(str(place / "model"))

    def read() -> bool:
        with Log() as log:
            return corpus_stage(BuildContext(tmp_path / "work", recipe, base, log)).cached

    (tmp_path / "texts" / "[bold].pdf").write_bytes(b"%PDF")
    for cached in (False, True):
        assert read() is cached
        said = capsys.readouterr().err
        assert "60 text files (000.txt, 001.txt, 002.txt, …)" in said
        assert "left out: [bold].pdf (not a known kind)" in said, "and no name is taken for markup"
    (tmp_path / "texts" / "000.txt").write_text("the licensee shall give notice of breach " * 40)
    assert not read()


def test_both_formats_ship_from_one_model(place: Path, built: Path) -> None:
    """ONNX beside GGUF: proven, measured, whole in itself, and saying the same."""
    onnx = ("onnx-fp32", "onnx-int8", "onnx-int4")
    targets = [part for name in (*onnx, "gguf-f16") for part in ("--target", name)]
    done = run(place, "--out", "both", "--no-baseline", *targets)
    assert done.returncode == 0, done.stderr
    report = json.loads((place / "both" / "report.json").read_text())
    files = [model["file"] for model in report["models"]]
    # SMALL asks for gguf-q8 too
    assert files == ["both-q8_0.gguf", *(f"{name}/model.onnx" for name in onnx), "both-f16.gguf"]
    parity = report["parity"]
    assert parity["onnx-fp32"]["kl_mean"] < 1e-5 and parity["onnx-fp32"]["argmax_agreement"] > 0.99
    assert parity["onnx-fp32"]["kl_mean"] < parity["onnx-int8"]["kl_mean"] < parity["onnx-int4"]["kl_mean"]
    sizes = {model["file"]: model["bytes"] for model in report["models"]}
    assert sizes["onnx-int4/model.onnx"] < sizes["onnx-int8/model.onnx"] < sizes["onnx-fp32/model.onnx"]
    assert {path.name for path in (place / "both" / "onnx-int4").iterdir()} == {
        *("model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "tokenizer_config.json")
    }
    program = [sys.executable, "-m", "minigpt_edge_runtime.cli"]
    said = {}
    for file in ("onnx-fp32", "both-f16.gguf"):
        line = [*program, "run", "both", "The licensee", "--file", file, "--greedy", "--max-tokens", "12"]
        done = subprocess.run(line, cwd=place, env=environment(place), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said[file] = done.stdout
    assert said["onnx-fp32"] == said["both-f16.gguf"]
    line = [*program, "verify", "both", "--json"]
    checked = subprocess.run(line, cwd=place, env=environment(place), capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    names = {check["name"] for check in json.loads(checked.stdout)["checks"] if check["ok"]}
    assert {f"{file}: parity" for file in files} <= names
    held_out = json.loads((place / "both" / "held-out.json").read_text())
    assert held_out["windows"] and held_out["questions"]
    for question in held_out["questions"]:
        assert len({*question["choices"]}) == 4 and 0 <= question["answer"] < 4


def test_a_file_that_differs_stops_the_build(
    place: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, so that the exporter can be made to lose a matrix."""
    import numpy as np

    from minigpt_edge.pipeline import build
    from minigpt_edge.recipe import Recipe
    from minigpt_edge.stages.console import Log
    from minigpt_edge_export.decoder import Decoder
    from minigpt_edge_runtime.errors import EdgeError

    honest = Decoder.load

    def wrong(self: Decoder, name: str) -> np.ndarray:
        array = honest(self, name)
        return np.ascontiguousarray(array[::-1]) if name == "embedding.weight" else array

    monkeypatch.setenv("MINIGPT_EDGE_CACHE", str(place / "cache"))
    monkeypatch.setattr(Decoder, "load", wrong)
    recipe = Recipe(
        corpus=(str(place / "corpus"),),
        model=str(place / "model"),
        targets=("onnx-fp16",),
        sparsity=0.2,
        min_count=1,
        calibration_tokens=4096,
        recover_tokens=32768,
        baseline=False,
        out=place / "wrong",
    )
    with Log() as log, pytest.raises(EdgeError, match="fp16 of model.onnx does not match") as caught:
        build(recipe, log)
    evidence = Path(str(caught.value.hint).rpartition(" ")[2])
    assert json.loads(evidence.read_text())["passed"] is False
    assert not (place / "wrong").exists() and not list(
        (place / "cache" / "work").glob("export-onnx-fp16*[0-9a-f]")
    )


def test_kept_terms_stay_whole(place: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    terms = tmp_path / "terms.txt"
    terms.write_text("quantum chromodynamics\n")
    base = Tokenizer.from_file(str(place / "model" / "tokenizer.json"))
    wanted = base.encode(" quantum chromodynamics").tokens
    done = run(
        place,
        "--out",
        "terms",
        "--keep-tokens",
        str(terms),
        "--no-recover",
        "--no-baseline",
        "--target",
        "gguf-f16",
    )
    assert done.returncode == 0, done.stderr
    kept = Tokenizer.from_file(str(place / "terms" / "tokenizer.json"))
    assert kept.encode(" quantum chromodynamics").tokens == wanted
    without = Tokenizer.from_file(str(place / "out" / "tokenizer.json"))
    assert without.encode(" quantum chromodynamics").tokens != wanted


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") + done.stderr.count("Error:") == 1
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--target", "gguf-nope"), 2, ("unknown target", "gguf-q4")),
        (("--method", "nope"), 2, ("least_squares",)),
        (("--model", "nope"), 2, ("there is no model", "smollm2-135m-instruct")),
        (("--sparsity", "0.97"), 1, ("hint:",)),
        (("--sparsity", "1.5"), 2, ("sparsity",)),
        (("--plan", "nope.json"), 1, ("no plan",)),
        (("--plan", "p.json", "--sparsity", "0.2"), 2, ("--sparsity does nothing with --plan",)),
        (("--keep-tokens", "nope.txt"), 1, ("keep-tokens",)),
        (("--calibration-tokens", "9000000"), 1, ("9,000,000",)),
        (("--calibration-tokens", "600"), 1, ("at least 2 windows",)),
        (("--no-recover", "--recover-until", "dense"), 2, ("contradict",)),
    ],
)
def test_bad_requests(
    place: Path, built: Path, options: tuple[str, ...], code: int, words: tuple[str, ...]
) -> None:
    refused(run(place, "--out", "bad", "--no-baseline", *options), code, *words)
    assert not (place / "bad").exists()


def test_unknown_domain(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "minigpt_edge", "build", "--domain", "nope"],
        cwd=place, env=environment(place), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    refused(done, 2, "no domain 'nope'", "law")


def test_unknown_architecture(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "model", tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    refused(run(place, "--model", str(tmp_path / "other"), "--out", "bad"), 1, "mamba", "llama")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", ("empty.txt",)),
        ("binary.txt", b"\x00\x01\x02" * 200, ("binary",)),
        ("latin.txt", "Gebühr für Lizenznehmer ".encode("latin-1") * 50, ("UTF-8",)),
        ("short.txt", b"too little text " * 40, ("needed",)),
        ("missing.txt", None, ("missing.txt",)),
    ],
)
def test_bad_corpora(
    place: Path, tmp_path: Path, name: str, content: bytes | None, words: tuple[str, ...]
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    line = [
        sys.executable,
        "-m",
        "minigpt_edge",
        "build",
        "--model",
        str(place / "model"),
        "--corpus",
        str(path),
    ]
    done = subprocess.run(
        line, cwd=place, env=environment(place), capture_output=True, text=True, timeout=120
    )
    assert done.returncode in (1, 2)
    refused(done, done.returncode, *words, "hint:")


def test_a_truncated_gguf(place: Path, built: Path, tmp_path: Path) -> None:
    whole = next(built.glob("*.gguf")).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    refused(run(place, "--model", str(tmp_path / "cut.gguf"), "--out", "bad"), 1, "cut.gguf", "hint:")


def test_another_models_plan(place: Path, built: Path, tmp_path: Path) -> None:
    plan = json.loads((built / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "model": "0" * 64}))
    refused(run(place, "--plan", str(tmp_path / "plan.json"), "--out", "bad"), 1, "another model", "hint:")


def test_output_that_is_not_ours(place: Path, built: Path) -> None:
    (place / "mine").mkdir(exist_ok=True)
    (place / "mine" / "thesis.txt").write_text("years of work")
    for options in ((), ("--force",)):
        refused(run(place, "--out", "mine", *options), 1, "not a bundle", "--out")
    assert (place / "mine" / "thesis.txt").read_text() == "years of work"


def test_force_replaces_only_what_the_manifest_lists(place: Path, built: Path) -> None:
    shutil.copytree(built, place / "forced")
    (place / "forced" / "notes.txt").write_text("keep me")
    refused(run(place, "--out", "forced", "--no-baseline"), 1, "another build", "--force")
    done = run(place, "--out", "forced", "--no-baseline", "--target", "gguf-q4_0", "--force")
    assert done.returncode == 0, done.stderr
    assert (place / "forced" / "notes.txt").read_text() == "keep me"
    assert {path.name for path in (place / "forced").glob("*.gguf")} == {
        "forced-q8_0.gguf",
        "forced-q4_0.gguf",
    }


def test_a_stage_damaged_by_hand(place: Path, built: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(place / "cache" / "work", work)
    plan = sorted(work.glob("prune-*/plan.json"))
    for path in plan:
        path.write_text("{}")
    done = run(place, "--out", "out", "--work", str(work))
    refused(done, 1, "plan.json", "delete")
    assert list(work.glob("corpus-*"))


def test_no_disk_space(place: Path, built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from minigpt_edge_export.decoder import read_checkpoint
    from minigpt_edge_export.gguf import write
    from minigpt_edge_runtime.errors import EdgeError

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(EdgeError, match="only 0 MB are free") as caught:
        write.write_gguf(read_checkpoint(place / "model"), tmp_path / "x.gguf")
    assert caught.value.hint
    assert not list(tmp_path.iterdir())
