"""`polygraft adapters download`, `export`, `import`: versions from and to a running server."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polygraft.commands.connection import DEFAULT_SERVER, JsonOption, ServerOption, print_json
from polygraft.commands.failure import CommandFailed, ExitCode

if TYPE_CHECKING:
    from polygraft.client import AdapterVersion, Upload
    from polygraft.client.upload import Progress

ReferenceArgument = Annotated[str, typer.Argument(help="name, name@alias, name@7 or sha256:...")]


def download(
    reference: ReferenceArgument,
    directory: Annotated[Path, typer.Argument(help="A directory that does not exist.")],
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Get the files of a version, byte for byte, with its manifest."""
    version = fetch(reference, directory, server)
    if as_json:
        print_json(version)
        return
    typer.echo(f"{version.adapter_name}@{version.number}  {version.digest}  {directory}")


def export(
    reference: ReferenceArgument,
    file: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")],
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Write a version as one file, the same bytes every time, for `import`."""
    from polygraft.adapters.archive import write_archive

    if file.exists():
        raise CommandFailed(f"{file} exists.", ExitCode.USAGE)
    with tempfile.TemporaryDirectory(prefix=".polygraft-", dir=file.absolute().parent) as made:
        version = fetch(reference, Path(made) / "version", server)
        partial = Path(made) / "archive"
        with partial.open("wb") as target:
            sha256 = write_archive(Path(made) / "version", target)
        partial.rename(file)
    if as_json:
        print_json({"digest": version.digest, "file": str(file), "sha256": sha256})
        return
    typer.echo(f"{version.adapter_name}@{version.number}  {version.digest}")
    typer.echo(f"{file}  sha256:{sha256}")


def import_version(
    file: Annotated[Path, typer.Argument(help="A file that `export` wrote.")],
    name: Annotated[str, typer.Argument(help="Name to publish under.")],
    alias: Annotated[str, typer.Option(help="Move this alias to the version.")] = "",
    require_verified: Annotated[
        bool, typer.Option(help="Refuse a version that does not say which base it was made for.")
    ] = False,
    allow_no_effect: Annotated[
        bool, typer.Option(help="Accept a LoRA that changes nothing.")
    ] = False,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Publish a version from one file, under its old digest."""
    from polygraft.adapters.archive import read_archive

    if not file.is_file():
        raise CommandFailed(f"{file} is not a file.", ExitCode.USAGE)
    with tempfile.TemporaryDirectory(prefix="polygraft-") as made:
        with file.open("rb") as source:
            digest = read_archive(source, Path(made))
        published = send(
            Path(made),
            name,
            alias,
            server,
            allow_unverified_base=not require_verified,
            allow_no_effect=allow_no_effect,
        )
    assert published.version.digest == digest  # the server publishes the manifest it was sent
    print_published(published, as_json)


def send(
    source: Path,
    name: str,
    alias: str,
    server: str,
    *,
    allow_unverified_base: bool,
    allow_no_effect: bool,
) -> Upload:
    """Upload with a progress bar."""
    from polygraft.client import Client

    with progress_bar(f"uploading {name}") as progress, Client(server) as client:
        return client.upload_adapter(
            source,
            name,
            alias=alias,
            allow_unverified_base=allow_unverified_base,
            allow_no_effect=allow_no_effect,
            progress=progress,
        )


def fetch(reference: str, directory: Path, server: str) -> AdapterVersion:
    """Download with a progress bar."""
    from polygraft.client import Client

    with progress_bar(f"downloading {reference}") as progress, Client(server) as client:
        return client.download_adapter(reference, directory, progress=progress)


def print_published(published: Upload, as_json: bool) -> None:
    """The version, the alias and the warnings of an upload."""
    if as_json:
        print_json(published)
        return
    version = published.version
    mark = "" if version.verified else "  UNVERIFIED"
    mark += "" if version.proven else "  UNPROVEN"
    typer.echo(f"{version.adapter_name}@{version.number}  {version.digest}{mark}")
    if published.alias:
        typer.echo(f"{published.alias.alias} -> {published.alias.number}")
    for warning in published.warnings:
        typer.secho(f"note: {warning}", fg="yellow", err=True)


@contextmanager
def progress_bar(text: str) -> Iterator[Progress]:
    """Bytes done, in all and a second, on a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = Console(stderr=True)
    with Progress(
        *columns,
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
