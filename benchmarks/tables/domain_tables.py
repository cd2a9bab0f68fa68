"""docs/results.md from benchmarks/results/domains.json; used by benchmarks/tables/tables.py.

The tables have the form of Mini-GPTs' tables 1 to 4 (arXiv 2312.12682), measured on held-out documents.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.tables import every_domain
from minigpt_edge.report.tables import MISSING, Table, duration, markdown, megabytes, number, percent

Rows = list[dict[str, Any]]


def outputs(results: Path, docs: Path) -> dict[Path, str]:
    """Generated file -> text, if the result is there."""
    source = results / "domains.json"
    if not source.exists():
        return {}
    result = json.loads(source.read_text(encoding="utf-8"))
    domains = _with_sizes(result["domains"], result["sizes"])
    parts = [_head(domains), every_domain.section(results)]
    parts += [_corpora(domains, result["second"]), _perplexity(domains)]
    parts += [_second(result["second"])] if result["second"] else []
    parts += [*_questions(domains), _forgetting(domains)]
    parts += [_overfitting(domains), *_training(domains)]
    parts += [_harness(results / "lm_eval_agreement.json"), _time(results / "evaluate_speed.json")]
    return {docs / "results.md": "\n\n".join(part for part in parts if part) + "\n"}


def _with_sizes(domains: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The domains' results with the rows of other sparsities among them."""
    found = dict(domains)
    for name in domains.keys() & sizes.keys():
        main, other = domains[name], sizes[name]
        origins = {**main, "others": [other]} if _origin(main) != _origin(other) else main
        rows, seconds = main["rows"] + other["rows"], main["seconds"] + other["seconds"]
        found[name] = {**origins, "rows": rows, "seconds": seconds}
    return found


def _head(domains: Mapping[str, Any]) -> str:
    first = next(iter(domains.values()))
    return (
        "# Domains\n\nWritten by `benchmarks/tables/tables.py` from `benchmarks/results/domains.json` "
        f"(`make bench-domains`). {first['model']}, {first['threads']} threads.\n\n"
        "Quality is that of the GGUF file in llama.cpp, on documents that neither calibration nor "
        "fine-tuning saw, and nothing was chosen by them, but for the tables about fine-tuning, which say "
        "what they show. Perplexity is per token of the unpruned tokenizer. "
        "Each model was made once: what another seed would give is not known. Intervals are 95 %: of "
        "questions Wilson's, of bits per byte twice the standard error over windows."
    )


def _harness(path: Path) -> str:
    """Accuracies beside lm-evaluation-harness's."""
    if not path.exists():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        [
            f"{row['task']}, {row['file']}",
            f"{row['ours']:.1f} % ({row['interval'][0]:.0f} to {row['interval'][1]:.0f})",
            f"{row['lm_eval']:.1f} %",
            f"{row['difference']:+.2f}",
            number(row["questions"]),
        ]
        for row in found["rows"]
    ]
    columns = ("question set, file", "ours", "lm-evaluation-harness", "points apart", "questions")
    note = (
        "The first questions of each set, by the harness's own definitions with our adapter "
        "(`benchmarks/experiments/lm_eval_agreement.py`). Likelihoods come from the same code on both sides; "
        f"the tests compare those with transformers'. {_origin(found)}"
    )
    return _table("Beside lm-evaluation-harness", columns, rows, note)


def _time(path: Path) -> str:
    """How long many questions take."""
    if not path.exists():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = [[row["task"], number(row["questions"]), duration(row["seconds"])] for row in found["rows"]]
    file = f"{found['file']['name']}, {megabytes(found['file']['bytes'])}, {found['threads']} threads"
    note = f"One run each of {file} (`benchmarks/speed/evaluate_speed.py`). {_origin(found)}"
    return _table("Time of four-choice questions", ("questions", "n", "time"), rows, note)


def _origin(found: Mapping[str, Any]) -> str:
    return f"{found['date']}, {str(found['commit'])[:9]}, {found['device']['cpu']}."


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    return f"## {title}\n\n{markdown(Table('', title, columns, rows, note))}"


def _corpora(domains: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    rows = []
    total = sum(found["seconds"] for part in (domains, second) for found in part.values())
    for name, found in domains.items():
        dropped, splits = found["dropped"], found["splits"]
        rows.append(
            [
                name,
                number(dropped["read"]),
                number(dropped["short"]),
                percent((dropped["near_duplicate"] + dropped["identical"]) / dropped["read"]),
                percent(found["pairs"]["near_duplicate"] / found["pairs"]["read"])
                if found.get("pairs")
                else MISSING,
                *(number(splits[split]["documents"]) for split in ("train", "validation", "test")),
                number(splits["train"]["base_tokens"]),
                duration(found.get("seconds")),
                "; other sparsities ".join(
                    _origin(part).rstrip(".") for part in (found, *found.get("others", ()))
                ),
            ]
        )
    columns = (
        "domain",
        "documents read",
        "too short",
        "repeated or alike",
        "pairs alike",
        "train",
        "validation",
        "test",
        "training tokens",
        "from nothing",
        "measured",
    )
    note = (
        "From nothing: making and measuring all of the domain's models below, alone on the machine named; "
        f"together, with the second model's, {duration(total)}. "
        "Speeds compare within a domain, not between machines."
    )
    return _table("The corpora", columns, rows, note)


def _text(row: Mapping[str, Any], domain: str) -> dict[str, Any]:
    return dict(row["tasks"].get(f"text:{domain}") or {})


def _bits(text: Mapping[str, Any], digits: int = 4) -> str:
    if not text:
        return MISSING
    return f"{text['bits_per_byte']:.{digits}f} ± {2 * (text.get('stderr') or 0):.{digits}f}"


def _perplexity_of(text: Mapping[str, Any]) -> str:
    """Per token of the unpruned tokenizer, with the interval that bits per byte gives it."""
    middle, per_token = text["perplexity_per_base_token"], text["bytes"] / text["base_tokens"] * math.log(2)
    factor = math.exp(2 * (text.get("stderr") or 0) * per_token)
    return f"{middle:.2f} ({middle / factor:.2f} to {middle * factor:.2f})"


def _second(domains: Mapping[str, Any]) -> str:
    name = next(iter(domains.values()))["model"]
    note = f"{name}, which was trained on simple stories alone and knows nothing of the domain."
    return _perplexity(domains, "Another base model", note)


def _perplexity(domains: Mapping[str, Any], title: str = "Size, perplexity and speed", note: str = "") -> str:
    rows = []
    for name, found in domains.items():
        dense = next(row for row in found["rows"] if row["model"] == "dense" and row["type"] == "f16")
        for row in found["rows"]:
            text, speed = _text(row, name), row["speed"]
            rows.append(
                [
                    f"{name}, {row['model']}, {row['type'].upper()}",
                    megabytes(row["bytes"]),
                    percent(row["bytes"] / dense["bytes"]),
                    _perplexity_of(text),
                    _bits(text),
                    number(text["windows"]),
                    _rate(speed),
                    f"{speed['itl_ms']['p50']:.1f} / {speed['itl_ms']['p99']:.1f}",
                ]
            )
    columns = (
        "model",
        "file",
        "of dense F16",
        "perplexity",
        "bits per byte",
        "windows",
        "tokens/s",
        "ms p50 / p99",
    )
    settings = speed["settings"]
    note += (
        f" Tokens per second: median of {settings['repetitions']} runs of {settings['n_gen']} tokens; the "
        "milliseconds are between two tokens of those runs. A domain's files were measured one after the "
        "other, in rounds: tokens/s are the median over rounds, in brackets their range; the milliseconds "
        "are of the fastest round."
    )
    return _table(title, columns, rows, note.strip())


def _rate(speed: Mapping[str, Any]) -> str:
    decode = speed["rounds"]
    return f"{number(median(decode))} ({number(min(decode))} to {number(max(decode))}), n = {len(decode)}"


def _questions(domains: Mapping[str, Any]) -> Iterator[str]:
    for name, found in domains.items():
        first = found["rows"][0]["tasks"]
        asked = [task for task, result in first.items() if "sum" in result]
        answered = [row for row in found["rows"] if row["tasks"].keys() & set(asked)]
        chance = [
            f"{task}: {first[task]['sum']['questions']:,}, guessing {first[task]['sum']['chance']:.0%}"
            for task in asked
        ]
        note = "Questions: " + "; ".join(chance) + ". † one answer (A, say) to nine of ten questions or more."
        titles = [
            task.partition(":")[2] if task.startswith("mmlu:") else task.partition(":")[0] for task in asked
        ]
        for scoring, said in (("sum", ""), ("per_byte", ", by log-likelihood per byte")):
            rows = [
                [
                    f"{row['model']}, {row['type'].upper()}",
                    *(_right(row["tasks"].get(task), scoring) for task in asked),
                ]
                for row in answered
            ]
            columns = ["model", *titles]
            if scoring == "sum" and any("translations" in first[task] for task in asked):
                rows = [[*cells, _chrf(row)] for cells, row in zip(rows, answered, strict=True)]
                columns.append("chrF")
            yield _table(f"Questions: {name}{said}", columns, rows, note)


def _right(result: Mapping[str, Any] | None, scoring: str) -> str:
    if not result:
        return MISSING
    found = result[scoring]
    low, high = found["interval"]
    mark = " †" if found.get("most_chosen", 0) >= 0.9 else ""
    return f"{100 * found['accuracy']:.1f} % ({100 * low:.0f} to {100 * high:.0f}){mark}"


def _chrf(row: Mapping[str, Any]) -> str:
    found = next((task["translations"] for task in row["tasks"].values() if "translations" in task), None)
    if found is None:
        return MISSING
    low, high = found["interval"]
    return f"{found['chrf']:.1f} ({low:.1f} to {high:.1f}), n = {found['pairs']}"


def _forgetting(domains: Mapping[str, Any]) -> str:
    """Bits per byte of each domain's models on the other domains' text."""
    everything = [row for found in domains.values() for row in found["rows"]]
    others = sorted({task for row in everything for task in row["tasks"] if task.startswith("text:")})
    rows = []
    for name, found in domains.items():
        for row in found["rows"]:
            if not row["tasks"].keys() & set(others) - {f"text:{name}"}:
                continue  # scored on its own domain alone
            cells = [_bits(_text(row, task.partition(":")[2]), 3) for task in others]
            rows.append([f"{row['model']}, for {name}", *cells])
    columns = ("model, four bits", *(task.partition(":")[2] for task in others))
    counts = {
        task: row["tasks"][task]["windows"] for row in everything for task in others if task in row["tasks"]
    }
    note = "Bits per byte on each domain's test windows: what specialising cost elsewhere. Windows: "
    note += ", ".join(f"{task.partition(':')[2]} {count}" for task, count in counts.items()) + "."
    return _table("Elsewhere", columns, rows, note)


def _overfitting(domains: Mapping[str, Any]) -> str:
    """F16 files on text that fine-tuning took beside the test windows."""
    rows = []
    for name, found in domains.items():
        for row in found["rows"]:
            if seen := row.get("seen"):
                text = _text(row, name)
                cells = [_bits(seen), number(seen["windows"]), _bits(text), number(text["windows"])]
                rows.append([f"{name}, {row['model']}, F16", *cells])
    columns = ("model", "text it was tuned on", "windows", "held-out text", "windows")
    note = (
        "Bits per byte. The first column's text is what fine-tuning takes first, each token once; the dense "
        "model has seen neither, so its difference is that of the texts. Where a model's is larger, it is "
        "overfitted by so much."
    )
    return _table("Overfitting", columns, rows, note) if rows else ""


def _training(domains: Mapping[str, Any]) -> Iterator[str]:
    """Training loss and validation quality as fine-tuning went on."""
    for name, found in domains.items():
        rows = []
        for row in found["rows"]:
            if row["type"] != "f16" or not row.get("history"):
                continue
            for entry in row["history"]:
                loss = entry.get("loss")
                rows.append(
                    [
                        row["model"],
                        number(entry.get("tokens")),
                        number(loss, 3),
                        number(entry["bits_per_byte"], 4),
                    ]
                )
            rows[-1][0] += f" ({duration(row['seconds'])})"
        if rows:
            columns = ("model", "tokens", "loss of one step (nats per token)", "validation bits per byte")
            note = (
                "As fine-tuning went on, in torch. The loss is of one step's 2,048 tokens, so it jumps, and "
                "of a pruned model it is also against the dense model's predictions, ever less of them. The "
                "weights that are best on validation are kept. Bits per byte are of texts from "
                f"{number(found['splits']['validation']['documents'])} validation documents; their intervals "
                "were not kept and are about as wide as those above."
            )
            yield _table(f"Fine-tuning: {name}", columns, rows, note)
