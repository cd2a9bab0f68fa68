"""run: prompt in, text out, streamed; or a conversation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minigpt_edge_runtime.commands.options import CONTEXT_LENGTH, FILE, NO_VERIFY, THREADS
from minigpt_edge_runtime.errors import UsageError

if TYPE_CHECKING:
    from minigpt_edge_runtime.generate.generate import Generation


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@FILE
@click.option("--chat", is_flag=True, help="Put the prompt into the model's chat template.")
@click.option("--system", help="A system message for the chat.")
@click.option(
    "--chat-template-kwargs",
    metavar="JSON",
    help="Further variables of the chat template, such as '{\"enable_thinking\": false}'.",
)
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--greedy", is_flag=True, help="Always take the likeliest token, without a repetition penalty.")
@click.option("--temperature", type=click.FloatRange(0), default=0.7, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=click.IntRange(0), default=40, show_default=True, help="0 switches it off.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=0.95, show_default=True)
@click.option("--min-p", type=click.FloatRange(0, 1), default=0.05, show_default=True)
@click.option("--repeat-penalty", type=click.FloatRange(0, min_open=True), default=1.1, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--stop", multiple=True, help="End before this text (may be given again).")
@CONTEXT_LENGTH
@THREADS
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@NO_VERIFY
def run(bundle: Path, prompt: str | None, file: str | None, as_json: bool, **options: Any) -> None:
    """Stream text from BUNDLE (a directory or a model file) that goes on from PROMPT.

    Without PROMPT, or with "-", the prompt is read from standard input. Without PROMPT at a terminal it is a
    conversation: a chat if the model has a chat template, else each line typed is continued.
    """
    from minigpt_edge_runtime.bundle.open import open_bundle
    from minigpt_edge_runtime.engines.open import open_engine
    from minigpt_edge_runtime.generate.chat import Conversation
    from minigpt_edge_runtime.generate.generate import Generation, Session, document_ids
    from minigpt_edge_runtime.generate.interactive import chat, continue_texts
    from minigpt_edge_runtime.generate.sampling import Sampling

    at_terminal = prompt is None and sys.stdin.isatty()
    if as_json and at_terminal:
        raise UsageError("--json needs a prompt", 'give one: run BUNDLE "This licence" --json')
    for name in ("system", "chat_template_kwargs"):
        if options[name] is not None and not options["chat"] and not at_terminal:
            raise UsageError(f"--{name.replace('_', '-')} needs --chat")
    variables = _variables(options["chat_template_kwargs"])
    _check_greedy(options["greedy"])
    sampling = Sampling(
        temperature=0.0 if options["greedy"] else options["temperature"],
        repeat_penalty=1.0 if options["greedy"] else options["repeat_penalty"],
        **{name: options[name] for name in ("top_k", "top_p", "min_p", "seed")},
    )
    found = open_bundle(bundle, file, check=not options["no_verify"])
    text = None if at_terminal else _read(prompt)
    with open_engine(found.model_path, options["context_length"], options["threads"]) as engine:
        session = Session(engine)

        def generation(ids: list[int]) -> Generation:
            return Generation(session, ids, sampling, options["max_tokens"], options["stop"])

        def continued(text: str) -> list[int]:
            return document_ids(engine, text, found.document_start)

        chatting = options["chat"] or options["system"] is not None or variables is not None
        if chatting or (at_terminal and engine.chat_templates):
            conversation = Conversation(engine, options["system"], options["max_tokens"], variables)
            if text is None:
                chat(conversation, generation)
            else:
                _answer(text, generation(conversation.ask(text)[0]), as_json)
        elif text is None:
            continue_texts(continued, generation)
        else:
            _answer(text, generation(continued(text)), as_json)


def _variables(given: str | None) -> dict[str, Any] | None:
    """The variables of --chat-template-kwargs; UsageError if they are not a JSON object."""
    try:
        found = None if given is None else json.loads(given)
    except (ValueError, RecursionError):
        found = given
    if found is None or isinstance(found, dict):
        return found
    raise UsageError(f"--chat-template-kwargs is no JSON object: {given}", "give one: '{\"name\": true}'")


def _check_greedy(greedy: bool) -> None:
    """UsageError if --greedy, which decides them, comes with a temperature or a penalty."""
    given = click.get_current_context().get_parameter_source
    for name in ("temperature", "repeat_penalty"):
        if greedy and given(name) is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(
                f"--greedy and --{name.replace('_', '-')} contradict each other", "give one of them"
            )


def _answer(prompt: str, generation: Generation, as_json: bool) -> None:
    pieces = []
    for piece in generation:
        pieces.append(piece)
        if not as_json:
            click.echo(piece, nl=False)
    stats = generation.stats()
    if as_json:
        click.echo(json.dumps({"prompt": prompt, "text": "".join(pieces), **stats}, ensure_ascii=False))
    else:
        click.echo()
        click.echo(
            f"[{stats['tokens']} tokens, {stats['tokens_per_second']} tokens/s, {stats['finish_reason']}]",
            err=True,
        )


def _read(prompt: str | None) -> str:
    if prompt is not None and prompt != "-":
        return prompt
    return sys.stdin.buffer.read().decode("utf-8", errors="replace")
