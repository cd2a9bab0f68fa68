"""The default build of five domains beside an earlier recipe's, for docs/results.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt_edge.report.tables import MISSING, Table, markdown, number

EARLIER_NAMES = {"pruned 42%, not fine-tuned": "pruned", "pruned 42%": "recovered"}  # as in domains.json
TRAINED = "trained IQ4_NL"
COLUMNS = (
    "domain",
    "recovery tokens",
    "dense F16",
    "dense, fine-tuned, F16",
    "pruned F16",
    "recovered F16",
    "recovered IQ4_NL",
    TRAINED,
    "IQ4_NL ÷ dense F16",
    "F16 ÷ fine-tuned",
    "perplexity pruned ÷ dense",
)
PERPLEXITY = "perplexity_per_base_token"
ON_GRID = "recovered on the grid"
RIVALS = {"recovered": "ours", "dense, fine-tuned": "dense, fine-tuned"}  # as lines of a picture
TITLE = "Every domain: this recipe and the one before"


def section(results: Path) -> str:
    """The section, "" before there is a result."""
    source = results / "every_domain.json"
    if not source.exists():
        return ""
    rows = json.loads(source.read_text(encoding="utf-8"))["rows"]
    earlier = json.loads((results / "domains.json").read_text(encoding="utf-8"))["domains"]
    cells = []
    for domain in dict.fromkeys(row["domain"] for row in rows):
        if domain in earlier:
            cells.append(
                _cells(f"{domain}, before", _tokens(earlier[domain]), _earlier_files(earlier, domain))
            )
        own: dict[int, dict[str, Any]] = {}  # the halves of the models, by tokens
        for row in (row for row in rows if row["domain"] == domain):
            own.setdefault(row["tokens"], {}).update(row["files"])
        cells += [_cells(domain, tokens, files) for tokens, files in own.items()]
    origins = dict.fromkeys(
        f"{row['date']}, {str(row['commit'])[:9]}, {row['device']['cpu']}, {row['threads']} threads"
        for row in rows
    )
    note = (
        "SmolLM2-135M-Instruct, 42 % removed; bits per byte of the GGUF file in llama.cpp on the domain's "
        "test windows, one run each (`benchmarks/experiments/every_domain.py`). 'Before' are rows of the "
        "tables below, of an earlier recipe: the vocabulary trimmed by a count of five, 2,048 tokens a step "
        "and a teacher in all of them. The dense model was fine-tuned on as many tokens as recovery took, "
        f"by the recipe of its row. Measured {'; '.join(origins)}."
    )
    if apart := _made_apart(rows):
        note += (
            f" In {', '.join(apart)} the fine-tuned half is of another run than the pruned one, perhaps of "
            "another kind of processor: bfloat16 or float32 alone made up to 1 % in law."
        )
    if rounded := list(dict.fromkeys(row["domain"] for row in rows if row.get("rounding") == "GPTQ")):
        note += f" GPTQ rounded IQ4_NL in {', '.join(rounded)}, llama.cpp's quantizer elsewhere."
    floats = (f"{row['domain']}, {row['models']}" for row in rows if row.get("products") == "float32")
    if wide := list(dict.fromkeys(floats)):
        note += f" Known to be trained with float32 products, not bfloat16: {'; '.join(wide)}."
    columns = list(COLUMNS)
    if any(ON_GRID in row["files"] for row in rows):
        note += " With --qat recovery trained the numbers that 'trained IQ4_NL' holds."
    else:
        at = columns.index(TRAINED)
        columns, cells = _without(columns, at), [_without(row, at) for row in cells]
    return f"## {TITLE}\n\n{markdown(Table('', TITLE, columns, cells, note))}"


def _made_apart(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Domains whose fine-tuned half was made by another commit than the pruned one."""
    commits: dict[tuple[str, int], set[str]] = {}
    for row in rows:
        if RIVALS.keys() & row["files"].keys():
            commits.setdefault((row["domain"], row["tokens"]), set()).add(str(row["commit"]))
    return list(dict.fromkeys(domain for (domain, _), made in commits.items() if len(made) > 1))


def _without(row: Sequence[str], at: int) -> list[str]:
    return [cell for number, cell in enumerate(row) if number != at]


def learning(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Domain -> model -> (minutes, bits per byte of its F16 file), where recovery has several lengths.

    Minutes are of all that was done to the dense model, evaluations counted.
    """
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        for model in RIVALS.keys() & row["files"].keys():
            point = sum(row["seconds"].values()) / 60, float(row["files"][model]["f16"]["bits_per_byte"])
            found.setdefault(row["domain"], {}).setdefault(RIVALS[model], []).append(point)
    return {
        domain: {name: sorted(models[name]) for name in RIVALS.values() if name in models}
        for domain, models in found.items()
        if len(models.get(RIVALS["recovered"], ())) > 1
    }


def _tokens(found: Mapping[str, Any]) -> int:
    return next(int(row["tokens"]) for row in found["rows"] if row["model"] == "pruned 42%")


def _earlier_files(domains: Mapping[str, Any], domain: str) -> dict[str, dict[str, Any]]:
    """Model -> type -> quality, of a domain's rows in domains.json."""
    files: dict[str, dict[str, Any]] = {}
    for row in domains[domain]["rows"]:
        name = EARLIER_NAMES.get(row["model"], row["model"])
        files.setdefault(name, {})[row["type"]] = row["tasks"][f"text:{domain}"]
    return files


def _cells(title: str, tokens: int, files: Mapping[str, Any]) -> Sequence[str]:
    def bits(model: str, kind: str = "f16", measure: str = "bits_per_byte") -> float | None:
        found = files.get(model, {}).get(kind)
        return float(found[measure]) if found else None

    return [
        title,
        number(tokens),
        *(number(bits(model), 4) for model in ("dense", "dense, fine-tuned", "pruned", "recovered")),
        number(bits("recovered", "iq4_nl"), 4),
        number(bits(ON_GRID, "iq4_nl"), 4),
        _ratio(bits("recovered", "iq4_nl"), bits("dense")),
        _ratio(bits("recovered"), bits("dense, fine-tuned")),
        _ratio(bits("pruned", measure=PERPLEXITY), bits("dense", measure=PERPLEXITY), digits=2),
    ]


def _ratio(one: float | None, other: float | None, digits: int = 3) -> str:
    return MISSING if one is None or other is None else number(one / other, digits)
