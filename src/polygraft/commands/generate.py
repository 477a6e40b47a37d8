"""`polygraft generate`: one answer of a running server, streamed to the terminal."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polygraft.commands import arguments
from polygraft.commands.connection import DEFAULT_SERVER, JsonOption, ServerOption, print_json
from polygraft.commands.failure import CommandFailed, ExitCode
from polygraft.commands.prompt_choice import choose_input, no_text

if TYPE_CHECKING:
    from polygraft.client import Client, GenerateOptions, Generation

app = typer.Typer(add_completion=False)

STDIN = "-"


def _option(panel: str, text: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar)


_INPUT, _SAMPLING, _STOPPING = "Input", "Sampling", "Stopping"
_OUTPUT, _CONSTRAINT, _CALL = "Output", "Constraint", "Call"


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="Text; '-' reads standard input.")] = None,
    adapter: Annotated[
        list[str] | None,
        _option(
            _INPUT,
            "name, name@alias, name@7 or sha256:...; several with weights compose.",
            metavar="REFERENCE[=WEIGHT]",
        ),
    ] = None,
    var: Annotated[
        list[str] | None,
        _option(_INPUT, "A variable of the adapter's prompt recipe.", metavar="NAME=VALUE"),
    ] = None,
    raw: Annotated[
        bool, _option(_INPUT, "Send the text as it is: no recipe, no chat template.", "--raw")
    ] = False,
    system: Annotated[str | None, _option(_INPUT, "System message, for chat bases.")] = None,
    token_ids: Annotated[
        str | None, _option(_INPUT, "The prompt as token ids.", metavar="ID,ID,...")
    ] = None,
    temperature: Annotated[float | None, _option(_SAMPLING, "0 is greedy.")] = None,
    top_p: Annotated[float | None, _option(_SAMPLING, "Nucleus of this probability.")] = None,
    top_k: Annotated[int | None, _option(_SAMPLING, "The k most likely tokens.")] = None,
    min_p: Annotated[
        float | None, _option(_SAMPLING, "Least part of the most likely token's probability.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, _option(_SAMPLING, "Above 1: against tokens of prompt and answer.")
    ] = None,
    presence_penalty: Annotated[
        float | None, _option(_SAMPLING, "Taken from the logits of tokens in the answer.")
    ] = None,
    frequency_penalty: Annotated[
        float | None, _option(_SAMPLING, "The same, once per occurrence.")
    ] = None,
    logit_bias: Annotated[
        list[str] | None, _option(_SAMPLING, "Added to a token's logit.", metavar="ID=VALUE")
    ] = None,
    seed: Annotated[int | None, _option(_SAMPLING, "Makes sampling repeatable.")] = None,
    n: Annotated[int | None, _option(_SAMPLING, "How many answers.", "-n", "--n")] = None,
    max_output_tokens: Annotated[int | None, _option(_STOPPING, "Longest answer.")] = None,
    min_output_tokens: Annotated[int | None, _option(_STOPPING, "Shortest answer.")] = None,
    stop: Annotated[list[str] | None, _option(_STOPPING, "Text that ends the answer.")] = None,
    stop_token_id: Annotated[
        list[int] | None, _option(_STOPPING, "Token that ends the answer.")
    ] = None,
    ignore_eos: Annotated[
        bool, _option(_STOPPING, "Go on after an end-of-sequence token.", "--ignore-eos")
    ] = False,
    time_limit: Annotated[float | None, _option(_STOPPING, "Seconds; then what there is.")] = None,
    json_schema: Annotated[
        str | None, _option(_CONSTRAINT, "JSON of this schema.", metavar="FILE|TEXT")
    ] = None,
    regex: Annotated[str | None, _option(_CONSTRAINT, "Text that matches.")] = None,
    choice: Annotated[list[str] | None, _option(_CONSTRAINT, "One of these texts.")] = None,
    grammar: Annotated[
        str | None, _option(_CONSTRAINT, "Text of this Lark grammar.", metavar="FILE|TEXT")
    ] = None,
    echo: Annotated[bool, _option(_OUTPUT, "Show the prompt, too.", "--echo")] = False,
    top_logprobs: Annotated[
        int | None, _option(_OUTPUT, "Log-probabilities, with so many others (--json).")
    ] = None,
    prompt_logprobs: Annotated[
        int | None, _option(_OUTPUT, "The same of the prompt (--json).")
    ] = None,
    as_json: JsonOption = False,
    server: ServerOption = DEFAULT_SERVER,
    priority: Annotated[str | None, _option(_CALL, "low, normal or high.")] = None,
    speculation: Annotated[
        bool | None,
        _option(_CALL, "Guess tokens from the prompt.", "--speculation/--no-speculation"),
    ] = None,
    sticky_key: Annotated[
        str, _option(_CALL, "Equal keys get the same version of an alias with a canary.")
    ] = "",
    timeout: Annotated[float | None, _option(_CALL, "Seconds for the whole call.")] = None,
) -> None:
    """Generate text with the base, an adapter, or several by weight.

    The text fills the adapter's prompt recipe if that has one variable; without a recipe it becomes
    a chat message if the base has a chat template.
    """
    from polygraft.client import Client

    text = sys.stdin.read() if prompt == STDIN else prompt
    given: dict[str, Any] = {
        **arguments.adapters_of(adapter or []),
        "token_ids": None if token_ids is None else arguments.token_ids_of(token_ids),
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "logit_bias": arguments.logit_bias_of(logit_bias or []) or None,
        "seed": seed,
        "n": n,
        "max_output_tokens": max_output_tokens,
        "min_output_tokens": min_output_tokens,
        "stop": stop,
        "stop_token_ids": stop_token_id,
        "ignore_eos": ignore_eos,
        "time_limit": time_limit,
        "json_schema": None if json_schema is None else arguments.text_or_file(json_schema),
        "regex": regex,
        "choice": choice,
        "grammar": None if grammar is None else arguments.text_or_file(grammar),
        "echo": echo,
        "top_logprobs": top_logprobs,
        "prompt_logprobs": prompt_logprobs,
        "return_token_ids": as_json,
        "priority": priority,
        "speculation": speculation,
        "sticky_key": sticky_key or None,
        "timeout": timeout,
    }
    options: GenerateOptions = {k: v for k, v in given.items() if v is not None}  # type: ignore[assignment]
    _check_options(options, raw or token_ids is not None, var, system, as_json)
    with Client(server) as client:
        if not raw and token_ids is None:
            text = choose_input(client, text, options, var or [], system)
        elif text is None and token_ids is None:
            raise no_text()
        _answer(client, text, options, as_json)


def _check_options(
    options: GenerateOptions,
    is_raw: bool,
    var: list[str] | None,
    system: str | None,
    as_json: bool,
) -> None:
    if is_raw and (var or system is not None):
        raise CommandFailed(
            "the prompt is sent as it is; leave --var and --system out.", ExitCode.USAGE
        )
    if not as_json and ("top_logprobs" in options or "prompt_logprobs" in options):
        raise CommandFailed("log-probabilities are shown with --json only.", ExitCode.USAGE)


def _answer(client: Client, text: str | None, options: GenerateOptions, as_json: bool) -> None:
    if as_json:
        answer = client.generate(text, **options)
        first = {"text": answer.text, "finish_reason": answer.finish_reason}
        print_json({**first, **dataclasses.asdict(answer)})
    elif options.get("n", 1) > 1:
        answer = client.generate(text, **options)
        for choice in answer.choices:
            typer.secho(f"[{choice.index}] ", dim=True, nl=False)
            typer.echo(choice.text)
        _summarise(answer)
    else:
        _stream(client, text, options)


def _stream(client: Client, text: str | None, options: GenerateOptions) -> None:
    with client.stream(text, **options) as stream:
        for piece in stream:
            sys.stdout.write(piece.text)
            sys.stdout.flush()
        typer.echo()
        if stream.generation is not None:
            _summarise(stream.generation)


def _summarise(generation: Generation) -> None:
    versions = [
        f"{v.adapter_name}@{v.number} {v.digest[:14]}"
        + (f" x {v.weight:g}" if v.weight != 1 else "")
        for v in generation.versions
    ]
    usage = generation.usage
    reasons = " ".join(dict.fromkeys(choice.finish_reason for choice in generation.choices))
    typer.secho(
        f"[{' + '.join(versions) or 'base'}, {usage.prompt_tokens} + {usage.output_tokens} tokens, "
        f"{reasons}, seed {generation.seed}]",
        dim=True,
        err=True,
    )
