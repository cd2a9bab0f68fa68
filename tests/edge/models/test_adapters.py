"""LoRA adapters: merged as peft merges them where their base is to be had, else refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: TID253
from peft import PeftModel
from safetensors.torch import load_file, save_file
from source_helpers import tiny_adapter, tiny_model_dir
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM  # noqa: TID253

from minigpt_edge.models.base_model import resolve_model
from minigpt_edge.models.checkpoint import load_model
from minigpt_edge_runtime.errors import EdgeError

IDS = torch.tensor([[5, 300, 310, 320, 330, 340]])
FILE = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        tied: tiny_model_dir(folder / ("tied" if tied else "untied"), tied=tied) for tied in (True, False)
    }


def merged_by_peft(base: Path, adapter: Path, rows: int | None = None) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_EDGE_CACHE", str(tmp_path / "cache"))  # for the slow ones too


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("tied", "settings"),
    [
        (True, {"use_rslora": True, "use_dora": True, "rank_pattern": {"q_proj": 2}}),
        (False, {"rows": 503, "modules_to_save": ["lm_head", "embed_tokens"]}),
        slow(True, {}),
        slow(True, {"alpha_pattern": {"q_proj": 5}, "bias": "lora_only"}),
        slow(False, {"modules_to_save": ["lm_head", "embed_tokens"]}),
        slow(True, {"modules_to_save": ["lm_head"]}),
        slow(False, {"target_modules": ["lm_head", "embed_tokens", "v_proj"]}),
        slow(True, {"rows": 503}),
        slow(True, {"trainable_token_indices": [3, 4]}),
    ],
)  # fmt: skip
def test_an_adapter_is_merged_as_peft_merges_it(
    tied: bool, settings: dict[str, Any], bases: dict[bool, Path], tmp_path: Path
) -> None:
    rows = settings.get("rows")
    adapter = tiny_adapter(bases[tied], tmp_path / "adapter", **settings)
    model = resolve_model(str(bases[tied]), adapter=str(adapter))
    theirs = merged_by_peft(bases[tied], adapter, rows)
    ours: Any = load_model(model.path)
    assert model.name == "adapter" and ours.config.vocab_size == (rows or 500)
    wanted, found = theirs.state_dict(), ours.state_dict()
    assert wanted.keys() == found.keys()
    for name, weight in wanted.items():
        assert torch.equal(found[name], weight), name
    with torch.no_grad():
        base = load_model(resolve_model(str(bases[tied])).path)(IDS).logits
        assert not torch.allclose(ours(IDS).logits[..., :500], base)


def test_an_adapter_finds_its_base_and_brings_its_tokenizer(bases: dict[bool, Path], tmp_path: Path) -> None:
    adapter = tiny_adapter(bases[True], tmp_path / "adapter")
    (adapter / "README.md").write_text("---\nlicense: mit\n---\n")
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    model = resolve_model(str(adapter))
    assert (model.path / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (model.licence, model.source) == ("mit", f"{adapter}, merged into {bases[True]}")
    assert (
        resolve_model(adapter=str(adapter)) == resolve_model(str(bases[True]), adapter=str(adapter)) == model
    )
    tokenizer = Tokenizer.from_file(str(bases[True] / "tokenizer.json"))
    tokenizer.add_tokens(["zebra"])
    tiny_adapter(bases[True], adapter, rows=501)
    tokenizer.save(str(adapter / "tokenizer.json"))
    changed = resolve_model(str(adapter))
    assert changed.fingerprint != model.fingerprint
    found = Tokenizer.from_file(str(changed.tokenizer)).encode("a zebra", add_special_tokens=False).ids
    assert 500 in found and load_model(changed.path).config.vocab_size == 501  # type: ignore[union-attr]


def test_a_gguf_file_or_a_converted_model_may_be_the_base(bases: dict[bool, Path], tmp_path: Path) -> None:
    from source_helpers import tiny_gguf

    gguf = tiny_gguf(tmp_path / "tiny.gguf")
    base = resolve_model(str(gguf))
    adapter = tiny_adapter(base.path, tmp_path / "adapter")
    theirs = merged_by_peft(base.path, adapter).state_dict()
    ours = load_model(resolve_model(str(gguf), adapter=str(adapter)).path).state_dict()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def edited(adapter: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(adapter, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_adapters_that_can_not_be_merged_are_named(bases: dict[bool, Path], tmp_path: Path) -> None:
    adapter, base = tiny_adapter(bases[True], tmp_path / "adapter"), str(bases[True])
    away = edited(adapter, tmp_path / "away", base_model_name_or_path="acme/base")
    moved = edited(adapter, tmp_path / "moved", base_model_name_or_path="/home/someone/llama")
    nameless = edited(adapter, tmp_path / "nameless", base_model_name_or_path=None)
    nested = edited(adapter, tmp_path / "nested", base_model_name_or_path=str(adapter))
    merge = f"--model BASE --adapter {tmp_path}"
    cases: list[tuple[str | None, Path, str, str]] = [
        (None, away, "is a LoRA adapter .* for acme/base, not a model", "merge it into acme/base"),
        (None, moved, "is a LoRA adapter .* for /home/someone/llama, not a model: there is no model", merge),
        (None, nameless, "names no base", merge),
        (None, nested, "is a LoRA adapter .*, not a model", merge),
        (
            base,
            edited(adapter, tmp_path / "1", peft_type="PROMPT_TUNING"),
            "of the kind PROMPT_TUNING",
            "peft",
        ),
        (base, edited(adapter, tmp_path / "2", megatron_config={"a": 1}), "megatron_config", "peft"),
        (base, edited(adapter, tmp_path / "3", r=2**40), "no weights of rank", "peft"),
        (base, edited(adapter, tmp_path / "4", target_modules=["q_proj"]), "does not fit its", "trained on"),
        (
            base,
            edited(adapter, tmp_path / "5", target_modules=["q", "x"]),
            "can't be merged into its base",
            "trained on",
        ),
        (
            base,
            edited(adapter, tmp_path / "6", r=8),
            "can't be merged into its base .*size mismatch",
            "trained on",
        ),
        (str(adapter), adapter, "is an adapter, not a model", "merge it"),
    ]
    both = shutil.copytree(bases[True], tmp_path / "both")
    for name in ("adapter_config.json", FILE):
        shutil.copyfile(adapter / name, both / name)
    pickled = edited(adapter, tmp_path / "pickled")
    (pickled / FILE).rename(pickled / "adapter_model.bin")
    empty = edited(adapter, tmp_path / "empty")
    (empty / FILE).unlink()
    other = edited(adapter, tmp_path / "other")
    save_file({f"x.{name}": w for name, w in load_file(other / FILE).items()}, other / FILE)
    cases += [
        (str(both), tmp_path, "holds a model and an adapter", "folder of their own"),
        (base, pickled, "as pickle", "newer peft"),
        (base, empty, f"no {FILE}", "copy"),
        (base, other, "does not fit its", "trained on"),
        (
            base,
            tiny_adapter(bases[True], tmp_path / "tied", target_modules=["lm_head"]),
            "something else once",
            "own",
        ),
        (base, bases[False], "no adapter_config.json", "peft saved"),
    ]
    for name, folder, message, hint in cases:
        with pytest.raises(EdgeError, match=message) as caught:
            resolve_model(name, adapter=None if folder == tmp_path else str(folder), offline=True)
        assert hint in (caught.value.hint or ""), (folder, caught.value.hint)
