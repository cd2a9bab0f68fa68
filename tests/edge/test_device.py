"""--device: what is chosen and refused, and every stage on a second kind of device against the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from pretended import CASES

from minigpt_edge.cli import cli
from minigpt_edge.prune.methods.registry import DEFAULT_METHOD, METHODS
from minigpt_edge.recipe import recipe_of
from minigpt_edge.stages import device
from minigpt_edge_runtime.errors import EdgeError, UsageError

torch = pytest.importorskip("torch")
PROGRAM = Path(__file__).parents[1] / "tiny" / "pretended.py"
QUICK = ("least_squares", "gpt_neox")


def pretended(*arguments: str | Path) -> str:
    """What the program prints in a process of its own."""
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def compare(place: Path, case: str) -> None:
    """Pruning gives the same bits on both, and recovery what sums in another order change."""
    found = json.loads(pretended(place, case))
    assert found["pruned"] == []
    if CASES[case].get("recover"):
        assert found["recovered"] < 1e-5
        assert found["resumed"] == 0.0
        assert found["grams"] < 1e-5
        assert found["scored"]


@pytest.mark.whole
@pytest.mark.parametrize("case", QUICK)
def test_stages_compute_on_another_device_what_they_do_on_the_cpu(tmp_path: Path, case: str) -> None:
    compare(tmp_path, case)


def test_every_method_is_among_the_cases() -> None:
    assert {case.get("method", DEFAULT_METHOD) for case in CASES.values()} == set(METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(set(CASES) - set(QUICK)))
def test_so_do_all_methods_and_architectures(tmp_path: Path, case: str) -> None:
    compare(tmp_path, case)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two of them, the second with more free memory."""
    free = {0: 2 * 2**30, 1: 7 * 2**30}
    fakes = {
        "current_accelerator": lambda check_available=False: torch.device("cuda"),
        "device_count": lambda: 2,
        "get_memory_info": lambda one: (free[one.index], 8 * 2**30),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.accelerator, name, fake)
    named = SimpleNamespace(get_device_name=lambda kind: "Card 9000")
    monkeypatch.setattr(torch, "get_device_module", lambda kind: named)


@pytest.mark.usefixtures("two_gpus")
def test_auto_is_the_accelerator_with_the_most_room() -> None:
    assert device.resolve("auto") == device.resolve("cuda") == "cuda:1"
    assert device.resolve("cuda:0") == "cuda:0"
    assert device.describe("cuda:1", "auto").startswith("cuda:1, Card 9000, 7.0 GiB free")


@pytest.mark.usefixtures("two_gpus")
def test_what_is_not_there_is_named() -> None:
    with pytest.raises(EdgeError, match="there is no cuda:2: torch counts 2 cuda"):
        device.resolve("cuda:2")
    with pytest.raises(EdgeError, match="no device mps that torch can use"):
        device.resolve("mps")
    with pytest.raises(UsageError, match="torch knows no device 'gpu'"):
        device.resolve("gpu")


@pytest.mark.usefixtures("two_gpus")
def test_several_processes_stay_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="several processes"):
        device.resolve("cuda")
    assert device.resolve("cpu") == "cpu"


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an NVIDIA driver, and a torch that was built without CUDA."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(device.shutil, "which", lambda name: f"/usr/bin/{name}")


@pytest.mark.usefixtures("without_cuda")
def test_torch_without_cuda_beside_a_gpu_says_how_to_install_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(EdgeError, match="built without CUDA") as raised:
        device.resolve("cuda")
    assert "make setup TORCH=cuda" in (raised.value.hint or "")
    assert device.resolve("auto") == "cpu"
    assert "built without CUDA" in device.describe("cpu", "auto")
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    assert device.describe("cpu", "auto") == "cpu: torch finds no accelerator"
    assert device.describe("cpu", "cpu:0") == "cpu"


def test_the_command_says_it_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    given = ["build", "--domain", "law", "--work", str(tmp_path), "--device"]
    missing = CliRunner().invoke(cli, [*given, "cuda"])
    assert missing.exit_code == 1 and "this machine has no device cuda" in missing.output
    wrong = CliRunner().invoke(cli, [*given, "GPU 1"])
    assert wrong.exit_code == 2 and "'GPU 1' is not a device" in wrong.output
    assert "Traceback" not in missing.output + wrong.output


def test_evaluating_a_model_file_refuses_a_device(tmp_path: Path) -> None:
    from minigpt_edge.evaluation import run
    from minigpt_edge.evaluation.subject import Subject

    (tmp_path / "model.gguf").touch()
    subject = Subject(tmp_path / "model.gguf", "law", None, None)
    with pytest.raises(UsageError, match="--device does nothing for a model file"):
        run.evaluate(subject, (), run.Options(device="auto"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("2 GiB asked, 1 GiB free\nmore"),
        RuntimeError("MPS backend out of memory (2 GiB asked)"),
    ],
)
def test_a_full_device_is_one_message(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    before = torch.are_deterministic_algorithms_enabled()
    with (
        pytest.raises(EdgeError, match=r"the memory of meta:0 is full \(.*2 GiB asked") as raised,
        device.computing_on("meta:0"),
    ):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.zeros(1).device.type == "meta"
        raise error
    assert "--device cpu" in (raised.value.hint or "")
    assert torch.are_deterministic_algorithms_enabled() is before
    assert torch.zeros(1).device.type == "cpu"


def test_other_errors_keep_their_own_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    with pytest.raises(RuntimeError, match="shapes differ"), device.computing_on("meta:0"):
        raise RuntimeError("shapes differ")


def test_stages_are_kept_by_the_kind_of_device() -> None:
    assert device.device_setting("cpu") == {}
    assert device.device_setting("cuda:1") == {"device": "cuda"}
    assert recipe_of(domain="law").device == "cpu"


def test_torchs_own_attention_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    from minigpt_edge.models import attention

    q, k, v = (torch.randn(2, heads, 37, 8, requires_grad=True) for heads in (6, 2, 2))
    weights = torch.randn(2, 6, 37, 8)

    def results() -> list[Any]:
        mixed, _ = attention.causal_attention(q, k, v, 8**-0.5)
        return [mixed, *torch.autograd.grad((mixed * weights).sum(), (q, k, v))]

    ours = results()
    monkeypatch.setattr(attention, "FUSED", ("cpu",))
    for a, b in zip(results(), ours, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
