"""benchmarks/tables: the README's figures and its picture come from the results, or it is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from report_helpers import full_report

from benchmarks.tables import every_domain, reliability_tables, tables


@pytest.fixture
def script() -> ModuleType:
    return tables


@pytest.fixture
def root(tmp_path: Path, script: ModuleType) -> Path:
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "build.json").write_text(json.dumps(full_report()))
    (tmp_path / "README.md").write_text(f"# Title\n\n{script.BEGIN}old\n{script.END}\nAfter\n")
    return tmp_path


def test_figures_are_written_between_the_marks(script: ModuleType, root: Path) -> None:
    assert script.main([], root) == 0
    text = (root / "README.md").read_text()
    assert text.startswith("# Title\n") and text.endswith("\nAfter\n") and "old" not in text
    assert "| shipped Q4_0 | 47.8 MB | " in text and text.count("\n| ") == 5
    assert "| shipped Q4_0 | 47.8 MB | 18 % |" in (root / "docs" / "default-build.md").read_text()
    assert (root / "docs" / "result.svg").read_text().startswith("<svg")
    assert script.main(["--check"], root) == 0


def test_check_notices_and_writes_nothing(script: ModuleType, root: Path) -> None:
    before = (root / "README.md").read_text()
    assert script.main(["--check"], root) == 1
    assert (root / "README.md").read_text() == before
    assert not (root / "docs").exists()


def test_missing_results_are_said(script: ModuleType, root: Path) -> None:
    (root / "benchmarks" / "results" / "build.json").unlink()
    with pytest.raises(SystemExit, match="build.json does not exist"):
        script.main([], root)


def _file(model: str, kind: str, size: float, bits: float) -> dict[str, Any]:
    return {"model": model, "type": kind, "bytes": size * 1e6, "bits_per_byte": bits, "stderr": 0.01}


def test_evidence_says_how_many_bytes_equal_quality_takes(script: ModuleType, root: Path) -> None:
    rows = [
        _file("dense", "f16", 200, 0.9),
        _file("dense", "q4_0", 80, 0.95),
        _file("dense", "q2_k", 90, 1.2),
    ]
    rows += [_file("ours", "f16", 100, 0.8), _file("ours", "q4_0", 25, 1.0)]
    result = {"rows": rows, "threads": 2, "commit": "0123456789", "device": {"cpu": "a processor"}}
    (root / "benchmarks" / "results" / "front.json").write_text(json.dumps(result))
    assert script.main([], root) == 0
    text = (root / "docs" / "evidence.md").read_text()
    assert "| dense F16 | 200.0 MB | 0.9000 | 0.25 |" in text  # halfway in bits: 50 MB, the geometric mean
    assert "| dense Q4_0 | 80.0 MB | 0.9500 | 0.44 |" in text  # 25 x 4 ** 0.25 = 35.4 MB
    assert "dense Q2_K |" not in text  # larger and worse than Q4_0
    assert "a processor" in text and "012345678." in text
    assert (root / "docs" / "front.svg").read_text().startswith("<svg")
    assert script.main(["--check"], root) == 0


def _asked(right: float) -> dict[str, Any]:
    by = {"accuracy": right, "interval": [right - 0.1, right + 0.1], "chance": 0.25, "questions": 300}
    by["most_chosen"] = 1.25 - right
    return {"sum": by, "per_byte": by}


def test_domains_have_their_page(script: ModuleType, root: Path) -> None:
    text = {"bits_per_byte": 1.0, "stderr": 0.01, "perplexity_per_base_token": 20.0}
    text |= {"bytes": 4000, "base_tokens": 1000, "windows": 150}
    settings = {"repetitions": 5, "n_gen": 64}
    speed = {
        "decode_tokens_per_second": 99.0,
        "rounds": [90.0, 99.0],
        "itl_ms": {"p50": 10.1, "p99": 12.0},
        "settings": settings,
    }
    told = {"completion:law": _asked(0.5), "mmlu:anatomy": _asked(0.3), "text:law": text, "text:games": text}
    history = [{"tokens": 1000, "loss": 2.5, "bits_per_byte": 0.95}]
    seen = {"bits_per_byte": 0.9, "stderr": 0.02, "windows": 140}
    tuned = {"history": history, "seconds": 60.0, "tokens": 1000, "seen": seen}
    row = {"bytes": 50_000_000, "tasks": told, "speed": speed}
    rows = [{"model": "dense", "type": "f16", **row}, {"model": "pruned 42%", "type": "f16", **row, **tuned}]
    rows.append({"model": "pruned 42%", "type": "iq4_nl", **row})
    splits = {name: {"documents": 10, "base_tokens": 5} for name in ("train", "validation", "test")}
    dropped = {"read": 100, "short": 1, "near_duplicate": 9, "identical": 1, "neutralised_tokens": 0}
    rows.append({"model": "cut", "type": "iq4_nl", **row, "tasks": {"text:law": text}})  # nothing else scored
    origin = {"date": "2026-01-01", "commit": "0123456789abcdef", "device": {"cpu": "a processor"}}
    found = {"law": {"splits": splits, "dropped": dropped, "rows": rows, **origin}}
    found["law"] |= {"model": "m", "threads": 2, "seconds": 200.0, "pairs": {"read": 4, "near_duplicate": 1}}
    smaller = {**found["law"], "rows": [{"model": "pruned 60%", "type": "iq4_nl", **row}], "seconds": 60.0}
    result = {"domains": found, "sizes": {"law": {**smaller, "date": "2026-01-02"}}, "second": {}}
    path = root / "benchmarks" / "results" / "domains.json"
    path.write_text(json.dumps(result))
    assert script.main([], root) == 0
    page = (root / "docs" / "results.md").read_text()
    measured = "4 min 20 s | 2026-01-01, 012345678, a processor"
    measured += "; other sparsities 2026-01-02, 012345678, a processor"
    assert f"| law | 100 | 1 | 10.0 % | 25.0 % | 10 | 10 | 10 | 5 | {measured} |" in page
    assert page.count("| law, cut, IQ4_NL |") == 1 and page.count("cut") == 1
    # 20 x exp(+-2 x 0.01 bits x 4 bytes per token x ln 2)
    figures = "20.00 (18.92 to 21.14) | 1.0000 ± 0.0200 | 150 | 94 (90 to 99), n = 2 | 10.1 / 12.0"
    assert f"| law, pruned 42%, IQ4_NL | 50.0 MB | 100.0 % | {figures} |" in page
    assert f"| law, pruned 60%, IQ4_NL | 50.0 MB | 100.0 % | {figures} |" in page
    assert "median of 5 runs of 64 tokens" in page and "Windows: games 150, law 150." in page
    assert "| pruned 42%, IQ4_NL | 50.0 % (40 to 60) | 30.0 % (20 to 40) † |" in page
    assert "| pruned 42%, for law | 1.000 ± 0.020 | 1.000 ± 0.020 |" in page
    assert "| pruned 42% (60.0 s) | 1,000 | 2.500 | 0.9500 |" in page
    assert "| law, pruned 42%, F16 | 0.9000 ± 0.0400 | 140 | 1.0000 ± 0.0200 | 150 |" in page
    assert page.count("## Questions: law") == 2
    assert script.main(["--check"], root) == 0


def _scored(bits: float) -> dict[str, float]:
    return {"bits_per_byte": bits, "perplexity_per_base_token": 20 * bits}


def test_domains_are_beside_the_recipe_before(tmp_path: Path) -> None:
    earlier = {"dense": 1.0, "dense, fine-tuned": 0.8, "pruned 42%, not fine-tuned": 1.5, "pruned 42%": 1.2}
    old = [
        {"model": name, "type": "f16", "tokens": 1000, "tasks": {"text:law": _scored(bits)}}
        for name, bits in earlier.items()
    ]
    (tmp_path / "domains.json").write_text(json.dumps({"domains": {"law": {"rows": old}}}))
    files = {"dense": {"f16": _scored(1.0)}, "pruned": {"f16": _scored(1.25)}}
    files["recovered"] = {"f16": _scored(0.9), "iq4_nl": _scored(0.95)}
    origin = {"date": "2026-01-01", "commit": None, "device": {"cpu": "c"}, "threads": 1}
    tuned = {"dense, fine-tuned": {"f16": _scored(0.75)}}
    grid = {"recovered on the grid": {"iq4_nl": _scored(0.92)}}
    rows = [{"domain": "law", "tokens": 2000, "files": part, **origin} for part in (files, tuned, grid)]
    said = {"rounding": "GPTQ", "products": "float32", "models": "pruned"}
    rows.append({"domain": "games", "tokens": 2000, "files": files, **said, **origin})
    (tmp_path / "every_domain.json").write_text(json.dumps({"rows": rows}))
    page = every_domain.section(tmp_path)
    assert "| law, before | 1,000 | 1.0000 | 0.8000 | 1.5000 | 1.2000 | – | – | – | 1.500 | 1.50 |" in page
    assert (
        "| law | 2,000 | 1.0000 | 0.7500 | 1.2500 | 0.9000 | 0.9500 | 0.9200 | 0.950 | 1.200 | 1.25 |" in page
    )
    assert "| games | 2,000 | 1.0000 | – | 1.2500 | 0.9000 | 0.9500 | – | 0.950 | – | 1.25 |" in page
    assert "GPTQ rounded IQ4_NL in games," in page and "not bfloat16: games, pruned." in page


def test_learning_is_drawn_where_there_are_several_lengths(script: ModuleType, root: Path) -> None:
    origin = {"date": "2026-01-01", "commit": None, "device": {"cpu": "c"}, "threads": 1, "domain": "law"}
    rows = [
        {
            **origin,
            "seconds": {"pruning": 60.0, "recovery": 60.0 * n},
            "files": {model: {"f16": _scored(1 / n)}},
        }
        for n in (2, 4)
        for model in ("recovered", "dense, fine-tuned")
    ]
    path = root / "benchmarks" / "results" / "every_domain.json"
    path.write_text(json.dumps({"rows": rows[2:]}))
    assert script.main([], root) == 0
    assert not (root / "docs" / "time.svg").exists()
    path.write_text(json.dumps({"rows": rows}))
    assert script.main([], root) == 0
    page, picture = (root / "docs" / name for name in ("evidence.md", "time.svg"))
    assert "| law | ours | 3 | 0.5000 |" in page.read_text() and "time.svg" in page.read_text()
    assert "dense, fine-tuned" in picture.read_text() and "law" in picture.read_text()


def test_evidence_draws_every_method(script: ModuleType, root: Path) -> None:
    quality = {"bits_per_byte": 1.0, "perplexity_per_base_token": 20.0}
    row = {"sparsity": 0.42, "asked": 0.42, "test": quality, "seconds": 9.0, "peak_rss_mb": 500.0}
    rows = [{"method": name, **row} for name in ("least_squares", "wanda, published", "wanda, mask")]
    rows.append({"method": "flap, published", "asked": 0.42, "failed": "too much"})
    result = {"model": "m", "domain": "law", "dense": {**quality, "perplexity_per_base_token": 16.0}}
    path = root / "benchmarks" / "results" / "methods-one-shot.json"
    path.write_text(json.dumps({**result, "rows": rows}))
    assert script.main([], root) == 0
    assert "| wanda, mask | 1.25 |" in (root / "docs" / "evidence.md").read_text()
    picture = (root / "docs" / "one-shot.svg").read_text()
    assert "least_squares (ours)" in picture and "wanda" in picture and "mask" not in picture


def test_reliability_says_what_was_broken(script: ModuleType, root: Path) -> None:
    page = root / "docs" / "reliability.md"
    page.parent.mkdir()
    marks = reliability_tables
    page.write_text(f"Promises\n{marks.BEGIN}old\n{marks.END}After\n")
    row = {"signal": "SIGKILL", "ok": True}
    result = {
        "kills": {"moments": 120, "kills": [row, {**row, "ok": False}, {"signal": "SIGINT", "ok": True}]},
        "disk": {"runs": [{"share": 0.5, "ok": True}]},
        "twice": {"repeated": {"ok": True}, "at once": {"ok": False}},
    }
    (root / "benchmarks" / "results" / "reliability.json").write_text(json.dumps(result))
    assert script.main([], root) == 0
    text = page.read_text()
    assert text.startswith("Promises") and text.endswith("After\n") and "old" not in text
    assert "(1 by SIGINT, 2 by SIGKILL) and resumed to the same files | 2 of 3 |" in text
    assert "50% of the disk they need, resumed with more | 1 of 1 |" in text
    assert text.count("**no**") == 1


def test_reliability_shows_estimates_beside_peaks(script: ModuleType, root: Path) -> None:
    page = root / "docs" / "reliability.md"
    page.parent.mkdir()
    marks = reliability_tables
    page.write_text(marks.BEGIN + marks.END)
    sizes = {"limit_bytes": None, "estimated_bytes": 3 << 30, "peak_bytes": 5 << 29, "seconds": 125.0}
    rows = [{"stage": "recover", "lora": True, **sizes}, {"stage": "prune", "lora": False, **sizes}]
    rows[1]["limit_bytes"] = 1 << 30
    result = {"model": "m", "calibration_tokens": 4096, "recover_tokens": 2048, "rows": rows}
    result |= {"device": {"cpu": "c"}, "threads": 2}
    (root / "benchmarks" / "results" / "memory.json").write_text(json.dumps(result))
    assert script.main([], root) == 0
    text = page.read_text()
    assert "| recovery with adapters | – | 3.00 GiB | 2.50 GiB | 2 min 05 s |" in text
    assert "| pruning | 1.00 GiB | 3.00 GiB | 2.50 GiB | 2 min 05 s |" in text
