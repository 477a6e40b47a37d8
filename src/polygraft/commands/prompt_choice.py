"""Where the text of `polygraft generate` goes: the adapters' recipe, else the chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polygraft.commands.arguments import assignment
from polygraft.commands.failure import CommandFailed, ExitCode

if TYPE_CHECKING:
    from polygraft.client import Client, GenerateOptions


def choose_input(
    client: Client,
    text: str | None,
    options: GenerateOptions,
    assignments: list[str],
    system: str | None,
) -> str | None:
    """Put the text into `options` where it fits; returned if it is to be sent as it is."""
    variables = dict(assignment("--var", item) for item in assignments)
    names = _variable_names(client, options)
    if variables or names:
        options["variables"] = _fill(names, variables, text)
        return None
    if text is None:
        raise no_text()
    if not client.model().has_chat_template:
        return text
    first = [] if system is None else [{"role": "system", "content": system}]
    options["messages"] = [*first, {"role": "user", "content": text}]
    return None


def no_text() -> CommandFailed:
    """There is nothing to send."""
    return CommandFailed("there is no text; give it as an argument or by '-'.", ExitCode.USAGE)


def _variable_names(client: Client, options: GenerateOptions) -> tuple[str, ...]:
    """The variables of the recipe that the named adapters carry, if one does."""
    adapter = options.get("adapter")
    weights = options.get("adapters") or ({adapter: 1.0} if adapter else {})
    for reference in (name for name, weight in weights.items() if weight):
        version = client.get_adapter(reference).version
        if version is not None and version.variables:
            return version.variables
    return ()


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
