"""`polygraft generate`: one answer of a running server, streamed to the terminal."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polygraft.commands.connection import DEFAULT_SERVER, JsonOption, ServerOption, print_json
from polygraft.commands.failure import CommandFailed, ExitCode

if TYPE_CHECKING:
    from polygraft.client import Client, GenerateOptions, Generation

app = typer.Typer(add_completion=False)

STDIN = "-"


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="Text; '-' reads standard input.")] = None,
    adapter: Annotated[
        str, typer.Option(help="name, name@alias, name@7 or sha256:...; empty is the base.")
    ] = "",
    var: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A variable of the adapter's prompt recipe."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Send the text as it is: no recipe, no chat template.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="System message, for chat bases.")] = None,
    max_output_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus of this probability.")] = None,
    top_k: Annotated[int | None, typer.Option(help="The k most likely tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer.")] = None,
    time_limit: Annotated[float | None, typer.Option(help="Seconds; then what there is.")] = None,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Generate text with the base or an adapter.

    The text fills the adapter's prompt recipe if that has one variable; without a recipe it becomes
    a chat message if the base has a chat template.
    """
    from polygraft.client import Client

    text = sys.stdin.read() if prompt == STDIN else prompt
    given: dict[str, Any] = {
        "adapter": adapter,
        "max_output_tokens": max_output_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop,
        "time_limit": time_limit,
    }
    options: GenerateOptions = {k: v for k, v in given.items() if v is not None}  # type: ignore[assignment]
    if raw and (var or system is not None):
        raise CommandFailed(
            "--raw sends the text as it is; leave --var and --system out.", ExitCode.USAGE
        )
    with Client(server) as client:
        if not raw:
            text = _choose_input(client, text, options, var or [], system)
        elif text is None:
            raise _no_text()
        _answer(client, text, options, as_json)


def _answer(client: Client, text: str | None, options: GenerateOptions, as_json: bool) -> None:
    if as_json:
        answer = client.generate(text, **options)
        first = {"text": answer.text, "finish_reason": answer.finish_reason}
        print_json({**first, **dataclasses.asdict(answer)})
        return
    with client.stream(text, **options) as stream:
        for piece in stream:
            sys.stdout.write(piece.text)
            sys.stdout.flush()
        typer.echo()
        if stream.generation is not None:
            typer.secho(_summary(stream.generation), dim=True, err=True)


def _choose_input(
    client: Client,
    text: str | None,
    options: GenerateOptions,
    assignments: list[str],
    system: str | None,
) -> str | None:
    """Put the text where it fits: the adapter's recipe, else the base's chat template.

    Returns the text if neither is there, to be sent as it is.
    """
    variables = dict(_assignment(item) for item in assignments)
    adapter = options.get("adapter")
    version = client.get_adapter(adapter).version if adapter else None
    names = version.variables if version else ()
    if variables or names:
        options["variables"] = _fill(names, variables, text)
        return None
    if text is None:
        raise _no_text()
    if not client.model().has_chat_template:
        return text
    first = [] if system is None else [{"role": "system", "content": system}]
    options["messages"] = [*first, {"role": "user", "content": text}]
    return None


def _fill(names: tuple[str, ...], variables: dict[str, str], text: str | None) -> dict[str, str]:
    """The text goes to the one variable that is still open."""
    if text is None:
        return variables
    unfilled = [name for name in names if name not in variables]
    if len(unfilled) != 1:
        listing = ", ".join(names) or "none"
        raise CommandFailed(
            f"the text would have to fill one variable, {len(unfilled)} are open (the adapter has: "
            f"{listing}). Use --var NAME=VALUE, or --raw to send the text as it is.",
            ExitCode.USAGE,
        )
    return {**variables, unfilled[0]: text}


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise CommandFailed(f"--var {text} has no '='; write NAME=VALUE.", ExitCode.USAGE)
    return name, value


def _no_text() -> CommandFailed:
    return CommandFailed("there is no text; give it as an argument or by '-'.", ExitCode.USAGE)


def _summary(generation: Generation) -> str:
    version = generation.version
    who = f"{version.adapter_name}@{version.number} {version.digest[:14]}" if version else "base"
    usage = generation.usage
    return (
        f"[{who}, {usage.prompt_tokens} + {usage.output_tokens} tokens, "
        f"{generation.finish_reason}, seed {generation.seed}]"
    )
