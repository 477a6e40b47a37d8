"""Reads a recipe file with command-line overrides; every error names the key and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from polygraft.trainer.config import Method, RunConfig
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.rows import HUB_PREFIX

M = TypeVar("M", bound=BaseModel)
RESOLVED = "config.resolved.yaml"
"""In every run directory."""
# The same settings as transformers, peft and other trainers call them.
_ELSEWHERE = {
    "learning_rate": "lr",
    "lr_scheduler_type": "schedule",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "batch_size": "batch",
    "per_device_train_batch_size": "batch",
    "gradient_accumulation_steps": "accumulate",
    "rank": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_r": "r",
    "target_modules": "targets",
    "use_rslora": "rslora",
    "num_virtual_tokens": "virtual_tokens",
    "prompt_tuning_init": "init",
    "prompt_tuning_init_text": "init_text",
    "max_seq_length": "max_length",
    "model": "base",
}


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice; YAML would keep the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(None, None, f"key {key!r} twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The recipe in `path` with `a.b=c` overrides applied. Raises RecipeError.

    File names in the recipe are taken relative to the recipe file, so a recipe runs from anywhere.
    """
    document = read_document(path, overrides)
    place_files(document, path.parent)
    return parse_recipe(document, file=str(path))


def place_files(document: dict[str, Any], folder: Path) -> None:
    """Make the file names of a recipe absolute, in place: they are relative to its folder."""
    data, method = _mapping(document.get("data")), _mapping(document.get("method"))
    mixture = data.get("mixture")
    _place(document, folder, "init_from")
    _place(data, folder, "train", "validation", "test")
    for ingredient in mixture if isinstance(mixture, list) else ():
        _place(_mapping(ingredient), folder, "data")
    _place(_mapping(method.get("fisher")), folder, "data")
    _place(_mapping(document.get("eval")), folder, "forgetting")


def _place(section: dict[str, Any], folder: Path, *keys: str) -> None:
    for key in keys:
        name = section.get(key)
        if isinstance(name, str) and not name.startswith((HUB_PREFIX, "builtin:")):
            section[key] = str((folder / name).resolve())


def _mapping(value: Any) -> dict[str, Any]:
    """The value itself where it is a section; what is none is told by the validation."""
    return value if isinstance(value, dict) else {}


def load_resolved(run: Path) -> RunConfig:
    """The recipe that a run wrote down, every automatic choice made. Raises RecipeError."""
    config = parse_recipe(_read_yaml(run / RESOLVED), file=str(run / RESOLVED))
    return config.model_copy(update={"output": run.parent})


def parse_recipe(document: Mapping[str, Any], *, file: str | None = None) -> RunConfig:
    """Validate a recipe given as a mapping. Raises RecipeError listing every problem."""
    return validated(RunConfig, document, file=file)


def validated(model: type[M], document: Mapping[str, Any], *, file: str | None = None) -> M:
    """A document of any of our sections. Raises RecipeError listing every problem."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        problems = dict.fromkeys(_sentence(dict(item), model) for item in error.errors())
        raise RecipeError("\n".join(problems), file=file) from None


def read_document(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a YAML file, with `a.b=c` overrides applied. Raises RecipeError."""
    document = _read_yaml(path)
    for override in overrides:
        _apply(document, override)
    return document


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except OSError as error:
        raise RecipeError(f"cannot read the recipe: {error.strerror}.", file=str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"is not valid YAML: {error}", file=str(path)) from None
    if not isinstance(document, dict):
        raise RecipeError("must be a mapping of sections such as data and method.", file=str(path))
    return document


def _apply(document: dict[str, Any], override: str) -> None:
    """Set one `a.b=c` in place; c is read as YAML, so numbers, lists and null work."""
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise RecipeError(f"--set needs key=value, found {override!r}.", hint="E.g. optim.epochs=2")
    *parents, last = key.split(".")
    section = document
    for parent in parents:
        child = section.setdefault(parent, {})
        if not isinstance(child, dict):
            raise RecipeError(f"--set {key}: {parent} is a value, not a section.")
        section = child
    try:
        section[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {key}: the value is not valid YAML: {error}") from None


def _sentence(error: Mapping[str, Any], root: type[BaseModel]) -> str:
    kind, input_ = str(error["type"]), error.get("input")
    key, known = _walk(error["loc"], root)
    if kind == "extra_forbidden":
        name = str(error["loc"][-1])
        return f"{key}: unknown key{_nearest(name, known)} Known: {', '.join(known)}."
    if kind.startswith("union_tag"):
        kinds = [model.model_fields["kind"].default for model in _models(Method)]
        known_kinds = f"Known: {', '.join(kinds)}."
        if "tag" not in error["ctx"]:
            return f"{key}.kind: is missing. {known_kinds}"
        found = str(error["ctx"]["tag"])
        return f"{key}.kind: unknown method {found!r}{_nearest(found, kinds)} {known_kinds}"
    message = str(error["msg"]).removeprefix("Value error, ")
    shown = "" if isinstance(input_, dict) or kind == "missing" else f", found {input_!r}"
    return f"{key or 'recipe'}: {message}{shown}."


def _nearest(name: str, known: Sequence[str]) -> str:
    ours = _ELSEWHERE.get(name)
    match = [ours] if ours in known else difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {match[0]!r}?" if match else "."


def _walk(location: Sequence[str | int], root: type[BaseModel]) -> tuple[str, list[str]]:
    """The dotted key an error is about, and the keys known in the section that holds it.

    pydantic puts the tag or type of a union member into the location; those are no keys.
    """
    sections: list[type[BaseModel]] = [root]
    known, shown = sorted(root.model_fields), list[str]()
    for part in map(str, location):
        if part.isdigit() and shown:
            shown[-1] += f"[{part}]"
            continue
        tagged = [s for s in sections if _tag(s) == part]
        if tagged and len(sections) > 1:
            sections = tagged
            known = sorted(tagged[0].model_fields)
            continue
        field = next((s.model_fields[part] for s in sections if part in s.model_fields), None)
        if field is not None or sections:
            shown.append(part)
        sections = _models(field.annotation) if field else []
        if sections:
            known = sorted(sections[0].model_fields)
    return ".".join(shown), known


def _tag(section: type[BaseModel]) -> str | None:
    field = section.model_fields.get("kind")
    return str(field.default) if field else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
