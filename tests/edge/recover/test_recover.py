"""Recovery on a tiny model: it learns, stops where it should, and resumes to the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finetune_helpers import START, make_checkpoint, make_corpus

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import sha256_file

torch = pytest.importorskip("torch")

SMALL: dict[str, Any] = {
    "tokens": 64 * 4 * 8,
    "sequence_length": 64,
    "step_tokens": 256,
    "lr": 3e-3,
    "threads": 1,
    "evaluations": 4,
    "checkpoint_seconds": 0.0,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("finetune")
    return make_checkpoint(folder / "model", unequal=True), make_corpus(folder / "corpus")


def run(inputs: tuple[Path, dict[str, Path]], out: Path, **changes: Any) -> dict[str, Any]:
    from minigpt_edge.recover.config import RecoverConfig, TrainingTexts
    from minigpt_edge.recover.recover import recover

    calls = {name: changes.pop(name) for name in ("before", "on_progress") if name in changes}
    config = RecoverConfig(**{**SMALL, **changes})
    return recover(inputs[0], out, TrainingTexts(**inputs[1]), config, **calls)


def weights_hash(out: Path) -> str:
    return sha256_file(out / "model.safetensors")


@pytest.mark.whole
def test_recovery_learns_and_reports(inputs: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from minigpt_edge.evaluation.perplexity import evaluate

    entries: list[dict[str, Any]] = []
    result = run(inputs, tmp_path / "out", on_progress=lambda entry: entries.append(dict(entry)))
    assert result["after"]["bits_per_byte"] < 0.97 * result["before"]["bits_per_byte"]
    assert result["tokens"] == 2048 and result["stopped"] == "tokens" and result["best_step"] == 8
    assert [e["step"] for e in result["history"]] == list(range(9))
    assert [e["step"] for e in result["history"] if "bits_per_byte" in e] == [0, 2, 4, 6, 8]
    assert result["history"][-1]["loss"] < result["history"][1]["loss"]
    assert max(e["lr"] for e in result["history"][1:]) <= SMALL["lr"]
    assert {"loss", "lr", "tokens_per_second", "eta_seconds", "steps"} <= set(entries[1])
    assert 0 < result["matmul_fraction"] < 1
    again = evaluate(tmp_path / "out", inputs[1]["validation"])
    assert again["bits_per_byte"] == pytest.approx(result["after"]["bits_per_byte"], rel=2e-3)
    assert json.loads((tmp_path / "out" / "recovery.json").read_text())["history"] == result["history"]
    assert not (tmp_path / "out" / ".recovery").exists()
    assert "per_layer_config" in json.loads((tmp_path / "out" / "config.json").read_text())
    assert capfd.readouterr() == ("", "")


@pytest.mark.whole
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_ends_with_the_same_bits(inputs: Any, tmp_path: Path, error: type) -> None:
    whole = run(inputs, tmp_path / "whole")

    def interrupt(entry: dict[str, Any]) -> None:
        if entry.get("step") == 6 and "loss" in entry:
            raise error

    with pytest.raises(error):
        run(inputs, tmp_path / "parts", on_progress=interrupt)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    messages: list[str] = []
    resumed = run(inputs, tmp_path / "parts", on_progress=lambda e: messages.append(e.get("message", "")))
    assert "going on after step 5" in messages
    assert weights_hash(tmp_path / "parts") == weights_hash(tmp_path / "whole")
    keep = ("step", "tokens", "loss", "lr", "bits_per_byte")
    curves = [[{k: e.get(k) for k in keep} for e in r["history"]] for r in (whole, resumed)]
    assert curves[0] == curves[1]


@pytest.mark.whole
def test_a_killed_run_ends_with_the_same_bits(inputs: Any, tmp_path: Path) -> None:
    run(inputs, tmp_path / "whole")
    program = f"""
import os, signal, sys
from pathlib import Path
from minigpt_edge.recover.config import RecoverConfig, TrainingTexts
from minigpt_edge.recover.recover import recover
def kill(entry):
    if entry.get("step") == 4 and "loss" in entry:
        os.kill(os.getpid(), signal.SIGKILL)
texts = TrainingTexts.of(Path({str(inputs[1]["train"].parent)!r}))
recover(Path({str(inputs[0])!r}), Path({str(tmp_path / "killed")!r}), texts, RecoverConfig(**{SMALL!r}),
        on_progress=kill)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    unfinished = tmp_path / "killed" / ".recovery" / "checkpoint-7"  # what a kill during a save leaves
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"half")
    run(inputs, tmp_path / "killed")
    assert weights_hash(tmp_path / "killed") == weights_hash(tmp_path / "whole")


@pytest.mark.slow
def test_a_compiled_run_resumes_to_the_same_bits(
    inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minigpt_edge.recover import session

    monkeypatch.setattr(session, "COMPILE_FROM", 1)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    whole = run(inputs, tmp_path / "whole")
    assert whole["compiled"] and whole["after"]["bits_per_byte"] < whole["before"]["bits_per_byte"]

    def interrupt(entry: dict[str, Any]) -> None:
        if entry.get("step") == 6 and "loss" in entry:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "parts", on_progress=interrupt)
    run(inputs, tmp_path / "parts")
    assert weights_hash(tmp_path / "parts") == weights_hash(tmp_path / "whole")


@pytest.mark.whole
def test_only_the_last_training_checkpoint_is_kept(inputs: Any, tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def look(entry: dict[str, Any]) -> None:
        seen.append(sorted(p.name for p in (tmp_path / "out" / ".recovery").glob("checkpoint-*")))

    run(inputs, tmp_path / "out", on_progress=look)
    assert ["checkpoint-5"] in seen and all(len(names) <= 1 for names in seen)


@pytest.mark.whole
def test_resuming_under_other_settings_is_refused(inputs: Any, tmp_path: Path) -> None:
    def interrupt(entry: dict[str, Any]) -> None:
        if entry.get("step") == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path, on_progress=interrupt)
    with pytest.raises(EdgeError, match="other settings") as caught:
        run(inputs, tmp_path, seed=1)
    assert caught.value.hint
    assert run(inputs, tmp_path, seed=1, resume=False)["tokens"] == 2048


@pytest.mark.whole
def test_a_teacher_changes_what_is_learned_and_resumes_to_the_same_bits(inputs: Any, tmp_path: Path) -> None:
    from minigpt_edge.recover.teacher import Teacher

    dense = run((make_checkpoint(tmp_path / "dense"), inputs[1]), tmp_path / "tuned")
    lesson = {"teacher": Teacher(tmp_path / "tuned", tuple(range(300)), 0.8, 6), "tokens": 64 * 4 * 3}
    alone = run(inputs, tmp_path / "alone", tokens=lesson["tokens"])
    whole = run(inputs, tmp_path / "whole", **lesson)
    assert dense["after"]["bits_per_byte"] < whole["before"]["bits_per_byte"]
    assert whole["after"]["bits_per_byte"] != alone["after"]["bits_per_byte"]
    assert whole["after"]["bits_per_byte"] < whole["before"]["bits_per_byte"]

    def interrupt(entry: dict[str, Any]) -> None:
        if entry.get("step") == 2 and "loss" in entry:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "parts", on_progress=interrupt, **lesson)
    with pytest.raises(EdgeError, match="other settings"):
        run(inputs, tmp_path / "parts", tokens=lesson["tokens"])
    run(inputs, tmp_path / "parts", **lesson)
    assert weights_hash(tmp_path / "parts") == weights_hash(tmp_path / "whole")


@pytest.mark.whole
def test_the_embedding_has_a_rate_of_its_own(inputs: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    before = load_file(inputs[0] / "model.safetensors")
    moved = {}
    for rate in (1e-6, 1.0):
        run(inputs, tmp_path / str(rate), tokens=512, evaluations=1, embedding_rate=rate)
        after = load_file(tmp_path / str(rate) / "model.safetensors")
        moved[rate] = {name: float((after[name] - before[name]).abs().max()) for name in before}
    table = "model.embed_tokens.weight"
    assert moved[1e-6][table] < 1e-6 and moved[1.0][table] > 1e-3
    assert all(change > 1e-4 for name, change in moved[1e-6].items() if "proj" in name)


@pytest.mark.whole
def test_known_scores_are_not_measured_again(inputs: Any, tmp_path: Path) -> None:
    known = {"bits_per_byte": 0.0, "perplexity_per_base_token": 1.0}
    result = run(inputs, tmp_path, before=known)
    assert result["before"] == {"step": 0, **known} and result["best_step"] == 0


def test_a_teacher_gives_its_predictions_for_the_kept_tokens(inputs: Any, tmp_path: Path) -> None:
    from minigpt_edge.models.checkpoint import load_model
    from minigpt_edge.recover.teacher import Teacher

    kept = (*range(280), 290)
    model = load_model(inputs[0])
    windows = torch.randint(0, 280, (3, 17), dtype=torch.int32)
    teacher = Teacher(inputs[0], kept, 0.5, 2)
    lessons = teacher.lessons(windows.numpy(), tmp_path)
    with torch.no_grad():
        logits = model(input_ids=windows[:2, :-1].long(), use_cache=False).logits
    actual = (lessons.hidden(0, 2) @ lessons.head.t()).float()
    expected = logits[..., list(kept)].flatten(0, 1)
    assert float((actual - expected).abs().max()) < 0.01 * float(expected.abs().max())
    assert teacher.lessons(windows.numpy(), tmp_path).ids.shape == (2, 16)  # kept, not computed again
    windows[0, 3] = (windows[0, 3] + 1) % 280
    with pytest.raises(EdgeError, match="other training windows"):
        teacher.lessons(windows.numpy(), tmp_path)


@pytest.mark.whole
def test_it_stops_at_the_perplexity_asked_for(inputs: Any, tmp_path: Path) -> None:
    free = run(inputs, tmp_path / "free")
    curve = [e["perplexity_per_base_token"] for e in free["history"] if "bits_per_byte" in e]
    result = run(inputs, tmp_path / "asked", until_perplexity=curve[2] * 1.0001)
    assert result["stopped"] == "perplexity reached" and result["history"][-1]["step"] == 4
    already = run(inputs, tmp_path / "already", until_perplexity=curve[0] * 1.01)
    assert already["tokens"] == 0 and already["best_step"] == 0


@pytest.mark.whole
def test_it_keeps_the_best_weights_and_stops_early(inputs: Any, tmp_path: Path) -> None:
    from minigpt_edge.evaluation.perplexity import evaluate

    result = run(inputs, tmp_path / "out", lr=3.0, tokens=64 * 4 * 12, evaluations=12, patience=2)
    assert result["stopped"] == "no improvement"
    assert result["history"][-1]["step"] < 12
    curve = {e["step"]: e["bits_per_byte"] for e in result["history"] if "bits_per_byte" in e}
    assert result["best_step"] == min(curve, key=lambda step: curve[step])
    scores = evaluate(tmp_path / "out", inputs[1]["validation"])
    assert scores["bits_per_byte"] == pytest.approx(curve[result["best_step"]], rel=5e-3)


@pytest.mark.whole
def test_divergence_is_an_error(inputs: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    for path in inputs[0].iterdir():
        if path.is_file():
            (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(EdgeError, match="not a number") as caught:
        run((broken, inputs[1]), tmp_path / "out")
    assert "learning rate" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 0}, "tokens must be at least 1"),
        ({"lr": 0.0}, "learning rate must be positive"),
        ({"sequence_length": 512}, "exceed the model's context of 256"),
    ],
)
def test_bad_settings_are_errors(inputs: Any, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgeError, match=message):
        run(inputs, tmp_path, **changes)


def test_bad_text_is_an_error(inputs: Any, tmp_path: Path) -> None:
    for content, message in [
        ("", "no text"),
        ('{"text": "short"}\n', "fewer than the 65 tokens"),
        ("not json\n", "not a split"),
    ]:
        (tmp_path / "train.jsonl").write_text(content)
        with pytest.raises(EdgeError, match=message):
            run((inputs[0], {**inputs[1], "train": tmp_path / "train.jsonl"}), tmp_path / "out")
    with pytest.raises(EdgeError, match="does not exist"):
        run((inputs[0], {**inputs[1], "train": tmp_path / "none.jsonl"}), tmp_path / "out")


def test_training_windows_are_all_of_the_text_from_many_documents_first(inputs: Any) -> None:
    from minigpt_edge.data.corpus import read_documents
    from minigpt_edge.data.training_windows import TrainingWindows
    from minigpt_edge.models.forward import read_tokenizer

    texts, tokenizer = read_documents(inputs[1]["train"]), read_tokenizer(inputs[0])
    start = tokenizer.token_to_id(START)

    def cut(seed: int, length: int = 32) -> TrainingWindows:
        return TrainingWindows(texts, tokenizer, START, length=length, seed=seed)

    first = cut(0).take(300)
    assert first.shape == (300, 33) and (first[:, 0] == start).all()
    assert (first[:20] == cut(0).take(20)).all(), "the first windows do not depend on how many follow"
    assert (first != cut(1).take(300)).any()
    whole = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    one = list(cut(0).one_pass())
    predicted = sorted(int(token) for window in one for token in window if token != start)
    every = sorted(token for ids in whole for token in ids)
    assert len(every) - len(predicted) < 32, "but for the last window's rest each token comes once a pass"
    pieces = [tuple(ids[at : at + 32]) for ids in whole for at in range(0, len(ids) - 31, 32)]
    windows = [tuple(window[1:].tolist()) for window in one]
    assert sorted(set(pieces) & set(windows)) == sorted(set(pieces)), "a whole piece is a window of its own"
    early = [
        next(n for n, ids in enumerate(whole) if _inside(window[1:12].tolist(), ids)) for window in one[:30]
    ]
    assert len(set(early)) > 20, "many documents before a second piece of one"


def _inside(some: list[int], ids: list[int]) -> bool:
    return any(ids[at : at + len(some)] == some for at in range(len(ids) - len(some) + 1))


def test_transformers_own_blocks_serve_what_the_fast_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minigpt_edge.recover import session

    monkeypatch.setattr(session, "COMPILE_FROM", 1)
    checkpoint = make_checkpoint(tmp_path / "model", mlp_bias=True)
    messages: list[str] = []
    corpus = make_corpus(tmp_path / "corpus")
    result = run(
        (checkpoint, corpus), tmp_path / "out", on_progress=lambda e: messages.append(e.get("message", ""))
    )
    assert any("biases" in message for message in messages)
    assert result["after"]["bits_per_byte"] < result["before"]["bits_per_byte"]
