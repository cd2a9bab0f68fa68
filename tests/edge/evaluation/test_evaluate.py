"""evaluate: the same likelihoods on torch, GGUF and in plain loops; texts, questions, translations."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch  # noqa: TID253
from click.testing import CliRunner
from tiny_build import WORDS, write_corpus, write_model
from tiny_questions import WINOGRANDE, write_package

from minigpt_edge.cli import cli
from minigpt_edge.data import held_out, tasks
from minigpt_edge.data.pairs import format_pair
from minigpt_edge.data.tasks.items import Item
from minigpt_edge.evaluation import run as running
from minigpt_edge.evaluation.multiple_choice import answer, summarize
from minigpt_edge.evaluation.run import Options, evaluate
from minigpt_edge.evaluation.subject import Subject, subject_of
from minigpt_edge.evaluation.torch_engine import TorchEngine
from minigpt_edge.evaluation.translation import chrf
from minigpt_edge.models.base_model import resolve_model
from minigpt_edge.models.checkpoint import load_model
from minigpt_edge.stages.console import Log
from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.write import write_gguf
from minigpt_edge_export.onnx.write import write_onnx
from minigpt_edge_export.targets import Precision
from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.errors import UsageError
from minigpt_edge_runtime.scoring.choices import encode_pair, score_pairs
from minigpt_edge_runtime.scoring.held_out import Window, score_window
from minigpt_edge_runtime.scoring.likelihood import token_nll

pytestmark = pytest.mark.whole

ITEMS = [
    Item(("the licensee shall not",), (" distribute", " copy the work", " zebras and dogs", " or"), 0),
    Item(("notice is ", "warranty is"), ("given without liability",), 1),
    Item(("",), (" permission", " agreement"), 1),
    Item(("this agreement terminates upon breach",), (" provided that notice is given", " of state law"), 0),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoint/, the same in float32 as model.gguf and onnx/, corpus/ and a cache with own domains."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_corpus(folder / "corpus")
    source = write_model(folder / "model", folder / "corpus", blocks=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIGPT_EDGE_CACHE", str(folder / "cache"))
        base = resolve_model(str(source))
    write_gguf(read_checkpoint(base.path), folder / "model.gguf", file_type="f32")
    write_onnx(read_checkpoint(base.path), folder / "onnx", Precision("fp32"))
    (folder / "pairs").mkdir()
    draw = random.Random(0)
    for number in range(60):
        pairs = [(" ".join(draw.choices(WORDS, k=6)), " ".join(draw.choices(WORDS, k=6))) for _ in range(8)]
        (folder / "pairs" / f"{number}.txt").write_text("\n\n".join(format_pair(*pair) for pair in pairs))
    own = folder / "cache" / "domains"
    own.mkdir()
    for name, path, more in (
        ("clauses", "corpus", ""),
        ("tongues", "pairs", 'task = "translation"'),
    ):
        (own / f"{name}.toml").write_text(
            f'title = "{name}"\ndefault = "files"\n{more}\n'
            f'[sources.files]\nkind = "files"\npath = "{folder / path}"\n'
        )
    (folder / "checkpoint").symlink_to(base.path)
    return folder


@pytest.fixture(params=["checkpoint", "model.gguf", "onnx/model.onnx"])
def model(request: pytest.FixtureRequest, place: Path) -> Path:
    return place / str(request.param)


def run(place: Path, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MINIGPT_EDGE_CACHE", str(place / "cache"))
    monkeypatch.setattr(tasks, "package_files", lambda *_, **__: place / "questions")
    return CliRunner().invoke(
        cli, ["evaluate", *arguments, "--base-model", str(place / "model"), "--threads", "1"]
    )


def test_likelihoods_are_those_of_the_tokens_that_the_context_lacks(place: Path, model: Path) -> None:
    plain: Any = load_model(place / "checkpoint")
    subject = subject_of(model)
    with subject.open(1) as engine:
        start = engine.document_start()
        for item in ITEMS:
            pairs = [encode_pair(engine, start, *pair) for pair in item.pairs]
            for pair, (score, likeliest) in zip(pairs, *score_pairs(engine, [pairs]), strict=True):
                with torch.no_grad():
                    ids = torch.tensor([[*pair.context, *pair.continuation]])
                    rows = plain(ids, use_cache=False).logits[0].log_softmax(-1)
                places = range(len(pair.context) - 1, ids.shape[1] - 1)
                expected = sum(float(rows[at, ids[0, at + 1]]) for at in places)
                assert score == pytest.approx(expected, rel=0.02, abs=0.02)
                assert likeliest == all(int(rows[at].argmax()) == int(ids[0, at + 1]) for at in places)


def test_a_stages_checkpoint_is_evaluated(place: Path, tmp_path: Path) -> None:
    """The directory that a build names at its end; it has a manifest, which is no bundle's."""
    stage = tmp_path / "recover-1"
    shutil.copytree(place / "checkpoint", stage)
    (stage / "manifest.json").write_text('{"stage": "recover"}')
    with subject_of(stage).open(1) as engine:
        assert answer(engine, ITEMS)["sum"]["questions"] == len(ITEMS)


def test_a_bundle_is_scored_by_its_own_base_model(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_EDGE_CACHE", str(place / "cache"))
    base = resolve_model(str(place / "model"))
    said = {"name": "model", "source": str(place / "model"), "sha256": base.fingerprint}
    subject = Subject(place / "model.gguf", "clauses", None, None, said)
    with Log(quiet=True) as log:
        found = evaluate(subject, ["text"], Options(threads=1), log)["tasks"]["text:clauses"]
        assert found["bits_per_byte"] > 0 and found["perplexity_per_base_token"] > 1
        other = dataclasses.replace(subject, made_from={**said, "sha256": "0" * 64})
        with pytest.raises(UsageError, match="made from model .* which is not found"):
            evaluate(other, ["text"], Options(threads=1), log)


def test_a_context_that_is_too_long_loses_its_beginning(place: Path, model: Path) -> None:
    """Choices of different lengths then have no beginning in common."""
    text = " ".join(WORDS[:60])
    with opened(model, 24) as short, opened(model, None) as whole:
        start = short.document_start()
        choices = (" the work", " law and the notice", " law")
        pairs = [encode_pair(short, start, text, choice) for choice in choices]
        kept = [[*pair.context, *pair.continuation][-24:] for pair in pairs]
        (found,) = score_pairs(short, [pairs])
        for pair, tokens, (score, _) in zip(pairs, kept, found, strict=True):
            count = len(pair.continuation)
            again = type(pair)(tokens[:-count], tokens[-count:])
            assert score == pytest.approx(next(score_pairs(whole, [[again]]))[0][0], rel=1e-2)
        with pytest.raises(ValueError, match="continuation has"):
            list(score_pairs(short, [[encode_pair(short, start, "the", text)]]))


def opened(path: Path, context: int | None) -> Any:
    return TorchEngine(path, context) if path.is_dir() else open_engine(path, context, 1, logits_all=True)


def test_answers_are_the_likeliest_in_sum_per_byte_and_as_the_paper_has_it(place: Path, model: Path) -> None:
    with subject_of(model).open(1) as engine:
        start = engine.document_start()
        found = answer(engine, ITEMS, paper=True)
        for number, item in enumerate(ITEMS):
            pairs = [encode_pair(engine, start, *pair) for pair in item.pairs]
            sums = [score for score, _ in next(score_pairs(engine, [pairs]))]
            bytes_ = [len(choice.strip().encode()) for _, choice in item.pairs]
            assert found["sum"]["answers"][number] == sums.index(max(sums))
            rates = [value / size for value, size in zip(sums, bytes_, strict=True)]
            assert found["per_byte"]["answers"][number] == rates.index(max(rates))
            whole = [
                next(score_pairs(engine, [[type(p)(p.context[:1], [*p.context[1:], *p.continuation])]]))[0][0]
                for p in pairs
            ]
            lengths = [len(p.context) + len(p.continuation) for p in pairs]
            paper = [math.exp(-w / (n - 1)) / n for w, n in zip(whole, lengths, strict=True)]
            assert found["paper"]["answers"][number] == paper.index(min(paper))


def test_a_text_that_is_longer_than_the_context_is_scored_in_pieces(place: Path) -> None:
    text = " ".join(WORDS[:60])
    window = Window(text, len(text.encode()), 60)
    with TorchEngine(place / "checkpoint", 24) as short, TorchEngine(place / "checkpoint") as whole:
        start, tokens = short.document_start(), short.tokenize(text)
        found = score_window(short, start, 0, window)
        pieces = [tokens[at : at + 23] for at in range(0, len(tokens), 23)]
        assert len(pieces) > 2 and found["tokens"] == len(tokens) and found["base_tokens"] == 60
        expected = sum(float(token_nll(whole, [start, *piece]).sum()) for piece in pieces)
        assert found["nll"] == pytest.approx(expected, rel=1e-3)


def test_intervals_are_wilsons() -> None:
    items = [Item(("a",), ("b", "c", "d", "e"), 0)] * 40
    found = summarize(items, [0] * 10 + [1] * 30)
    z, p, n = 1.959964, 0.25, 40
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert found["interval"] == pytest.approx([middle - half, middle + half], abs=1e-6)
    assert (found["accuracy"], found["chance"], found["questions"]) == (0.25, 0.25, 40)


def test_texts_and_questions_on_a_file_and_a_checkpoint(
    place: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(place / "questions", {"winogrande": [WINOGRANDE] * 5}, {})
    options = ("--domain", "clauses", "--tasks", "text,completion,winogrande", "--limit", "5")
    done = run(place, str(model), *options, "-o", str(place / "out.json"), monkeypatch=monkeypatch)
    assert done.exit_code == 0, done.output
    found = json.loads((place / "out.json").read_text())
    assert set(found["tasks"]) == {"text:clauses", "completion:clauses", "winogrande"}
    text = found["tasks"]["text:clauses"]
    assert 0 < text["bits_per_byte"] < 10 and text["windows"] >= 4 and text["stderr"] > 0
    completion = found["tasks"]["completion:clauses"]
    assert completion["sum"]["questions"] == 5 and completion["per_byte"]["chance"] == 0.25
    assert found["tasks"]["winogrande"]["sum"]["accuracy"] in (0.0, 1.0)
    assert "bits per byte" in done.output and "guessing 50.0%" in done.output
    assert "warning" not in done.output


def test_a_corpus_in_another_language_is_warned_of(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = place / "cache" / "domains"
    text = (own / "clauses.toml").read_text().replace("default =", 'language = "de"\ndefault =')
    (own / "klauseln.toml").write_text(text)
    options = ("--domain", "klauseln", "--tasks", "text")
    done = run(place, str(place / "model.gguf"), *options, monkeypatch=monkeypatch)
    assert done.exit_code == 0 and "says its language is de" in done.output and "look like en" in done.output


def test_the_same_figures_from_torch_and_from_the_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bits = []
    for name in ("checkpoint", "model.gguf", "onnx/model.onnx"):
        options = ("--domain", "clauses", "--tasks", "text", "-o", str(place / "out.json"))
        assert run(place, str(place / name), *options, monkeypatch=monkeypatch).exit_code == 0
        bits.append(json.loads((place / "out.json").read_text())["tasks"]["text:clauses"]["bits_per_byte"])
    assert bits == pytest.approx([bits[0]] * 3, rel=5e-3)


def test_without_tasks_it_is_asked_what_there_is_for_its_domain(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--domain", "clauses", "--limit", "4", "--paper-scoring")
    done = run(place, str(place / "model.gguf"), *options, monkeypatch=monkeypatch)
    assert done.exit_code == 0, done.output
    assert "text:clauses" in done.stdout and "4, chance 25%" in done.stdout and "±" in done.stdout
    assert "as Mini-GPTs scores" in done.output and "  as Mini-GPTs " in done.stdout


def test_what_specialising_cost_elsewhere_beside_the_base_model(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.domains, "list_domains", lambda: ["clauses", "tongues"])
    options = ("--domain", "clauses", "--tasks", "text,elsewhere", "--beside-base", "--json")
    done = run(place, str(place / "model.gguf"), *options, monkeypatch=monkeypatch)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    base = found["base_model"]["tasks"]
    assert set(found["tasks"]) == set(base) == {"text:clauses", "text:tongues"}
    for name, text in found["tasks"].items():  # the file has the base model's weights
        assert text["bits_per_byte"] == pytest.approx(base[name]["bits_per_byte"], rel=5e-3)


def test_other_text_than_the_bundle_was_made_from_is_warned_of(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIGPT_EDGE_CACHE", str(place / "cache"))
    subject = Subject(place / "model.gguf", "clauses", str(place / "model"), None, None, "files", "0" * 64)
    said: list[str] = []
    with Log(quiet=True) as log:
        monkeypatch.setattr(log, "line", lambda *parts, **_: said.append(" ".join(map(str, parts))))
        evaluate(subject, ["text"], Options(threads=1), log)
        assert any("made from other text of domain clauses" in line for line in said)
        with pytest.raises(UsageError, match="no source 'web'"):
            evaluate(dataclasses.replace(subject, source="web"), ["text"], Options(threads=1), log)


def test_a_domain_without_enough_text_for_questions_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--domain", "clauses", "--tasks", "completion")
    monkeypatch.setattr(running.corpus, "read_split", lambda *_: ["too short"])
    done = run(place, str(place / "model.gguf"), *options, monkeypatch=monkeypatch)
    assert done.exit_code == 1 and "no questions for completion:clauses" in done.output


def test_results_that_can_not_be_written_are_refused_first(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--domain", "clauses", "-o", str(place / "absent" / "out.json"))
    done = run(place, str(place / "model.gguf"), *options, monkeypatch=monkeypatch)
    assert done.exit_code == 1 and "absent does not exist" in done.output


def test_passages_without_spaces_are_asked_about_too() -> None:
    texts = ["".join(chr(0x4E00 + (n * k) % 5000) for n in range(900)) for k in range(3, 60, 7)]
    texts = ["\n".join(text[at : at + 330] for at in range(0, 900, 330)) for text in texts]
    found = held_out.questions(texts, random.Random(0), 8)
    assert found and all(choice.strip() for question in found for choice in question["choices"])


def test_translations_are_chosen_and_written(
    place: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--domain", "tongues", "--tasks", "mcq", "--limit", "6", "-o", str(place / "out.json"))
    done = run(place, str(model), *options, monkeypatch=monkeypatch)
    assert done.exit_code == 0, done.output
    found = json.loads((place / "out.json").read_text())["tasks"]["translation:tongues"]
    assert found["sum"]["questions"] == 6 and found["sum"]["chance"] == 0.25
    written = found["translations"]
    assert written["pairs"] == 6 and 0 <= written["interval"][0] <= written["chrf"] <= 100
    assert "nc:6" in written["signature"] and len(written["written"]) == 5


@pytest.mark.parametrize("written", [["nothing"] * 6, ["a b"] * 6, ["nothing"] * 4 + ["a b"] * 2])
def test_chrf_of_translations_of_which_some_match(written: list[str]) -> None:
    found = json.loads(json.dumps(chrf(written, ["a b c d"] * 6)))
    low, high = found["interval"]
    assert low - 1e-3 <= found["chrf"] <= high + 1e-3 and (found["chrf"] > 0) == ("a b" in written)
    assert low >= 0  # the bootstrap's is symmetric, chrF is not below 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tasks", "triviaqa"), "no task 'triviaqa'"),
        (("--tasks", "mcq"), "mcq needs a domain"),
        (("--tasks", "mcq", "--domain", "clauses"), "names no question sets"),
        (("--tasks", "text", "--domain", "lore"), "no domain 'lore'"),
        (("--tasks", "translation:clauses"), "not one of translation"),
    ],
)
def test_what_can_not_be_evaluated_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    done = run(place, str(place / "checkpoint"), *options, monkeypatch=monkeypatch)
    assert done.exit_code and message in done.output and "Traceback" not in done.output
    missing = run(place, str(place / "nothing"), "--tasks", "boolq", monkeypatch=monkeypatch)
    assert missing.exit_code and "does not exist" in missing.output


def test_the_harness_sees_the_same_likelihoods(place: Path, model: Path) -> None:
    from minigpt_edge.evaluation.lm_eval_model import EdgeModel

    adapter = EdgeModel(str(model))
    requests = [
        SimpleNamespace(args=pair, task_name="t", doc_id=number)
        for number, item in enumerate(ITEMS)
        for pair in item.pairs
    ]
    found = adapter.loglikelihood(requests, disable_tqdm=True)
    engine, start = adapter.engine, adapter.start
    for request, (score, _) in zip(requests, found, strict=True):
        ((alone, _),) = next(score_pairs(engine, [[encode_pair(engine, start, *request.args)]]))
        assert score == pytest.approx(alone, rel=1e-2, abs=1e-2)
    text = " ".join(WORDS * 30)  # longer than the context
    (rolling,) = adapter.loglikelihood_rolling([SimpleNamespace(args=(text,))])
    assert rolling < -2 * len(engine.tokenize(text))
    settings = {"until": [" the"], "max_gen_toks": 8}
    (written,) = adapter.generate_until([SimpleNamespace(args=("the licensee", settings))])
    assert " the" not in written and len(engine.tokenize(written)) <= 8
