"""Training on a file's grid: the checkpoint lies on it, is better than a rounded one, and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_helpers import make_checkpoint, make_corpus

from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.grids import GRIDS, find_codes
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import sha256_file
from minigpt_edge_runtime.formats.gguf_names import gguf_name

torch = pytest.importorskip("torch")

SMALL: dict[str, Any] = {
    "tokens": 64 * 4 * 40,
    "sequence_length": 64,
    "step_tokens": 256,
    "lr": 3e-3,
    "threads": 1,
    "evaluations": 4,
}


def train(inputs: Any, out: Path, **changes: Any) -> Any:
    from minigpt_edge.recover.config import RecoverConfig, TrainingTexts
    from minigpt_edge.recover.recover import recover

    calls = {name: changes.pop(name) for name in ("on_progress",) if name in changes}
    return recover(inputs[0], out, TrainingTexts(**inputs[1]), RecoverConfig(**{**SMALL, **changes}), **calls)


def write_importance(checkpoint: Path, path: Path) -> Path:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    shapes = read_checkpoint(checkpoint).shapes()
    save_file(
        {
            gguf_name(name): rng.lognormal(0, 1, shape[1]).astype(np.float32)
            for name, shape in shapes.items()
            if name.startswith("blocks.") and len(shape) == 2
        },
        path,
    )
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path], Path]:
    """A checkpoint, text, and an importance matrix."""
    folder = tmp_path_factory.mktemp("grid")
    start, corpus = make_checkpoint(folder / "model", unequal=True), make_corpus(folder / "corpus")
    return start, corpus, write_importance(start, folder / "imatrix.safetensors")


@pytest.mark.whole
def test_the_checkpoint_lies_on_the_grid_and_lost_less_than_by_rounding(inputs: Any, tmp_path: Path) -> None:
    from minigpt_edge.evaluation.perplexity import evaluate
    from minigpt_edge.recover.config import FileGrid

    start = make_checkpoint(tmp_path / "start", hidden_size=64, intermediate_size=128, head_dim=16)
    inputs = start, inputs[1], write_importance(start, tmp_path / "imatrix.safetensors")
    plain = train(inputs, tmp_path / "plain")
    result = train(inputs, tmp_path / "out", grid=FileGrid("Q2_0", inputs[2]), plain_share=0.75)
    curves = [[e["bits_per_byte"] for e in r["history"] if "bits_per_byte" in e] for r in (plain, result)]
    assert curves[0][:-1] == curves[1][:-1], "the same up to the steps on the grid"
    rounded = round_matrices(tmp_path / "plain", tmp_path / "rounded", "Q2_0")
    lost = evaluate(rounded, inputs[1]["validation"])["bits_per_byte"] - curves[0][-1]
    assert curves[1][-1] - curves[0][-1] < 0.8 * lost
    assert result["best_step"] == 40 and result["after"]["bits_per_byte"] == curves[1][-1]
    again = evaluate(tmp_path / "out", inputs[1]["validation"])["bits_per_byte"]
    assert again == pytest.approx(curves[1][-1], rel=2e-3)


@pytest.mark.whole
@pytest.mark.parametrize(
    ("kind", "compiled"), [("IQ4_NL", True), ("IQ4_NL", False), ("Q4_0", False), ("Q5_0", False)]
)
def test_every_matrix_that_divides_lies_on_the_grid(
    inputs: Any, tmp_path: Path, kind: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minigpt_edge.recover import recover
    from minigpt_edge.recover.config import FileGrid

    monkeypatch.setattr(recover, "compiles", lambda config: compiled)
    train(inputs, tmp_path, grid=FileGrid(kind, inputs[2]), tokens=64 * 4 * 4)
    decoder, found = read_checkpoint(tmp_path), 0
    for name, shape in decoder.shapes().items():
        if name.startswith("blocks.") and len(shape) == 2:
            on_grid = find_codes(decoder.load(name), GRIDS[kind]) is not None
            assert on_grid == (shape[1] % 32 == 0), name
            found += on_grid
    assert found > 8


def round_matrices(checkpoint: Path, out: Path, kind: str) -> Path:
    """A copy with its matrices rounded as training rounds them, and not trained."""
    from minigpt_edge.models.checkpoint import load_model, save_model
    from minigpt_edge.recover.config import FileGrid
    from minigpt_edge.recover.on_grid import OnGrid

    model = load_model(checkpoint)
    importance = write_importance(checkpoint, checkpoint / "imatrix.safetensors")
    grid = OnGrid(model, checkpoint, FileGrid(kind, importance), compiled=False)
    importance.unlink()
    grid.follow(0)
    with grid.rounded():
        save_model(model, checkpoint, out)
    return out


@pytest.mark.whole
@pytest.mark.parametrize(("at", "share"), [(10, 0.75), (36, 0.75), (10, 0.0)])
def test_an_interrupted_run_ends_with_the_same_bits(
    inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, share: float
) -> None:
    from minigpt_edge.recover import on_grid
    from minigpt_edge.recover.config import FileGrid

    monkeypatch.setattr(on_grid, "FIT_EVERY", 4)
    grid = FileGrid("IQ4_NL", inputs[2])
    changes: dict[str, Any] = {"grid": grid, "plain_share": share, "checkpoint_seconds": 0.0}
    train(inputs, tmp_path / "whole", **changes)

    def interrupt(entry: dict[str, Any]) -> None:
        if entry.get("step") == at and "loss" in entry:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(inputs, tmp_path / "parts", on_progress=interrupt, **changes)
    with pytest.raises(EdgeError, match="other settings"):
        train(inputs, tmp_path / "parts", grid=FileGrid("Q4_0", inputs[2]))
    train(inputs, tmp_path / "parts", **changes)
    hashes = {sha256_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")}
    assert len(hashes) == 1


@pytest.mark.whole
def test_recoveries_that_share_their_first_steps_end_with_the_same_bits(inputs: Any, tmp_path: Path) -> None:
    from minigpt_edge.recover.config import FileGrid

    changes: dict[str, Any] = {"grid": FileGrid("IQ4_NL", inputs[2]), "plain_share": 0.75}
    fork = tmp_path / "fork"
    alone = {"plain": train(inputs, tmp_path / "plain"), "grid": train(inputs, tmp_path / "grid", **changes)}
    steps: list[int] = []
    shared = {
        "plain": train(inputs, tmp_path / "shared-plain", fork=fork, plain_share=0.75),
        "grid": train(
            inputs,
            tmp_path / "shared-grid",
            **changes,
            fork=fork,
            on_progress=lambda entry: steps.append(entry.get("step", 99)),
        ),
    }
    assert min(steps) > 30, "it went on from what the first one left"
    for name in alone:
        assert alone[name]["after"] == shared[name]["after"]
        paths = (tmp_path / name, tmp_path / f"shared-{name}")
        assert len({sha256_file(path / "model.safetensors") for path in paths}) == 1


def test_what_can_not_be_trained_on_a_grid_is_said(inputs: Any, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    from minigpt_edge.recover.config import FileGrid

    with pytest.raises(EdgeError, match="no row of this model divides by Q2_0's blocks of 64"):
        train(inputs, tmp_path / "out", grid=FileGrid("Q2_0", inputs[2]))
    save_file({"other": np.ones(32, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(EdgeError, match="importance matrix lacks"):
        train(inputs, tmp_path / "out", grid=FileGrid("Q4_0", tmp_path / "other.safetensors"))
    with pytest.raises(EdgeError, match="adapters are not trained"):
        train(inputs, tmp_path / "out", grid=FileGrid("Q4_0", inputs[2]), lora_rank=4)
