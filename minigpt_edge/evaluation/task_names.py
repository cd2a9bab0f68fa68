"""Names of tasks: what a user may ask for, and the tasks that it stands for."""

from __future__ import annotations

from minigpt_edge.data import domains, tasks
from minigpt_edge_runtime.errors import UsageError

MCQ, COMPLETION, TEXT, WIKITEXT, TRANSLATION = "mcq", "completion", "text", "wikitext", "translation"
ELSEWHERE = "elsewhere"


def split_name(name: str) -> tuple[str, str]:
    """A task's kind (a question set's own name is one) and the domain or part that it is about."""
    kind, _, of = name.partition(":")
    return kind, of


def default_tasks(domain: str | None) -> list[str]:
    """The text of a model's domain, and all questions there are about it."""
    own = _domain(domain, TEXT)
    asked = own.task == domains.TRANSLATION or bool(own.questions)
    return [TEXT, COMPLETION, *([MCQ] if asked else [])]


def expand(name: str, domain: str | None) -> list[str]:
    """The tasks that a name stands for, of a model of a domain; UsageError for an unknown one."""
    if name == MCQ:
        own = _domain(domain, name)
        if own.task == domains.TRANSLATION:
            return [f"{TRANSLATION}:{own.name}"]
        if not own.questions:
            hint = "completion questions are made from its held-out text: --tasks completion"
            raise UsageError(f"domain {own.name} names no question sets", hint)
        return list(own.questions)
    if name == WIKITEXT:
        return [f"{TEXT}:general"]
    if name == ELSEWHERE:
        own = _domain(domain, name)
        return [f"{TEXT}:{other}" for other in domains.list_domains() if other != own.name]
    if name in (TEXT, COMPLETION):
        return [f"{name}:{_domain(domain, name).name}"]
    kind, of = split_name(name)
    if kind in (TEXT, COMPLETION):
        domains.load_domain(of)
    elif kind == TRANSLATION:
        if domains.load_domain(of or TRANSLATION).task != domains.TRANSLATION:
            raise UsageError(f"domain {of} is not one of translation", "leave it out")
        return [f"{TRANSLATION}:{of or TRANSLATION}"]
    else:
        tasks.get_task(name)
    return [name]


def _domain(domain: str | None, task: str) -> domains.Domain:
    if not domain:
        raise UsageError(
            f"{task} needs a domain, and the model names none", "say which with --domain, or name other tasks"
        )
    return domains.load_domain(domain)
