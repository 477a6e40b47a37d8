"""Local files of the benchmarks: found, checked row by row, or named as missing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from polygraft.adapters.files import hash_file
from polygraft.trainer.bench import suites
from polygraft.trainer.bench.fields import check_row, describe
from polygraft.trainer.bench.suites import Definition
from polygraft.trainer.digests import digest
from polygraft.trainer.errors import DataError, RecipeError
from polygraft.trainer.rows import Row, read_rows

ENDINGS = (".jsonl", ".parquet")


@dataclass(frozen=True)
class BenchTask:
    """One task with its rows. `name` is what results call it."""

    name: str
    definition: Definition
    rows: Sequence[Row]
    shots: Sequence[Row]
    """Examples that may stand in the prompt; empty where there is no file of them."""
    source: str
    """The file, or how the rows were made."""
    sha256: str
    """Of the file's bytes, or of made rows as JSON."""

    def with_rows(self, name: str, rows: Sequence[Row]) -> BenchTask:
        """The same task on changed rows."""
        return replace(self, name=name, rows=rows, sha256=hash_rows(rows))


@dataclass(frozen=True)
class Found:
    """What a suite can run, and a sentence for each file that it lacks."""

    tasks: list[BenchTask]
    missing: list[str]


def find_tasks(
    suite: str, data_dir: Path | None, only: Sequence[str], *, with_shots: bool
) -> Found:
    """The tasks of a suite, all of them or those named in `only`.

    Raises RecipeError for an unknown task or no data folder, DataError for unreadable rows; for
    missing files only if nothing is left to run, or if the tasks were named.
    """
    if suite.startswith(suites.MINI):
        from polygraft.trainer.bench.mini import make_tasks

        return Found(_chosen(make_tasks(suite), only, suite), [])
    if data_dir is None:
        raise RecipeError(
            f"{suite} runs on data of your own.",
            item="--data-dir",
            hint=f"Name its folder; `polygraft bench {suite} --data-dir D` then says what to put "
            f"where. {suites.MINI}{suite} needs none.",
        )
    if not data_dir.is_dir():
        raise DataError("there is no such folder.", file=str(data_dir), item="--data-dir")
    tasks, missing = [], []
    for definition in _definitions(suite, data_dir, only):
        file = _file(data_dir / definition.test_file)
        shots = _file(data_dir / definition.shots_file) if with_shots else None
        lacking = [definition.test_file] if file is None else []
        lacking += [definition.shots_file] if with_shots and shots is None else []
        missing += [_missing(definition, data_dir / path) for path in lacking]
        if file is not None and not lacking:
            rows = _read(file, definition)
            shown = _read(shots, definition) if shots else []
            tasks.append(
                BenchTask(definition.name, definition, rows, shown, str(file), hash_file(file))
            )
    if missing and (only or not tasks):
        raise DataError("\n".join(missing))
    return Found(tasks, missing)


def hash_rows(rows: Iterable[Row]) -> str:
    """sha256 of rows as JSON lines with sorted keys."""
    return digest("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))


def _definitions(suite: str, data_dir: Path, only: Sequence[str]) -> list[Definition]:
    if suite in ("glue", "superglue"):
        names = suites.SUITES[suite].split()
        make = suites.glue if suite == "glue" else suites.superglue
        for name in only:
            _check_known(name, names, suite)
        return [make(name) for name in names if not only or name in only]
    known = suites.mmlu_subjects() if suite == "mmlu" else _bigbench_names()
    there = sorted({path.stem for path in (data_dir / suite).glob("*") if _is_data(path, suite)})
    for name in only or there:
        _check_known(name, known, suite, data_dir / suite if not only else None)
    chosen = list(only) or there
    if not chosen:
        raise DataError(_nothing(suite, data_dir))
    if suite == "mmlu":
        return [suites.mmlu(name) for name in chosen]
    return [_bigbench(name, data_dir) for name in chosen]


def _bigbench(name: str, data_dir: Path) -> Definition:
    """By choice where the first row has options and there is such a definition."""
    file = _file(data_dir / "bigbench" / name)
    first = next(read_rows(file), (0, {}))[1] if file else {}
    by_choice = name in suites.bigbench_tasks(choices=True)
    by_text = name in suites.bigbench_tasks(choices=False)
    return suites.bigbench(
        name, choices=by_choice and (bool(first.get("multiple_choice_targets")) or not by_text)
    )


def _bigbench_names() -> list[str]:
    return sorted({*suites.bigbench_tasks(choices=True), *suites.bigbench_tasks(choices=False)})


def _is_data(path: Path, suite: str) -> bool:
    if path.name.startswith("."):
        return False
    if suite == "mmlu":
        return path.is_dir()
    return path.suffix in ENDINGS and not path.stem.endswith("-shots")


def _check_known(name: str, known: Sequence[str], suite: str, folder: Path | None = None) -> None:
    if name in known:
        return
    near = suites.nearest(name, known)
    text = f"lm-eval has no task {name!r} in {suite}; {near or 'see docs/evaluation.md'}"
    if folder is not None:
        raise DataError(f"{text}.".replace("?.", "?"), file=str(folder / name))
    raise RecipeError(f"{text}.".replace("?.", "?"), item="--task")


def _chosen(tasks: list[BenchTask], only: Sequence[str], suite: str) -> list[BenchTask]:
    for name in only:
        _check_known(name, [task.name for task in tasks], suite)
    return [task for task in tasks if not only or task.name in only]


def _missing(definition: Definition, path: Path) -> str:
    return (
        f"{definition.name}: data missing, put {path.name}.jsonl with fields "
        f"{describe(definition.fields)} at {path.parent}/"
    )


def _nothing(suite: str, data_dir: Path) -> str:
    if suite == "mmlu":
        example = suites.mmlu("anatomy")
        rest = "and so on for each subject"
    else:
        example = suites.bigbench("causal_judgment", choices=True)
        rest = "and so on for each task"
    return f"{_missing(example, data_dir / example.test_file)} ({rest})"


def _file(stem: Path) -> Path | None:
    return next((p for p in (Path(f"{stem}{e}") for e in ENDINGS) if p.is_file()), None)


def _read(path: Path, definition: Definition) -> list[Row]:
    """Only the fields that the definition reads, so that rows agree in them. Raises DataError."""
    rows = []
    for line, row in read_rows(path):
        place = f"{path}:{line}"
        check_row(definition.fields, row, place)
        options = row.get("multiple_choice_targets") if definition.questions else None
        if options and row["targets"][0] not in options:
            raise DataError(
                f"the target {row['targets'][0]!r} is none of the options.",
                file=place,
                item="multiple_choice_targets",
            )
        rows.append({name: row[name] for name in definition.fields})
    if not rows:
        raise DataError("has no rows.", file=str(path))
    return rows
