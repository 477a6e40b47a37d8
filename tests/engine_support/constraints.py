"""Constraints for the tiny bases, random schemas, and a validator of our own for them."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from tiny_models import EOS, VOCAB_SIZE, byte_tokenizer

from polygraft.server.constraints.compiler import ConstraintCompiler
from polygraft.server.constraints.matching import CompiledMatcher
from polygraft.server.engine.constraint import Constraint, ConstraintKind

Schema = dict[str, Any]


def compile_all(kind: ConstraintKind, texts: list[str]) -> list[CompiledMatcher]:
    """For the byte tokenizer of the tiny bases."""

    async def compile_each() -> list[CompiledMatcher]:
        return [await compiler.compile(Constraint(kind, text)) for text in texts]

    compiler = ConstraintCompiler(byte_tokenizer(), vocab_size=VOCAB_SIZE, eos_token_ids=[EOS])
    try:
        return asyncio.run(compile_each())
    finally:
        compiler.close()


def random_schema(generator: random.Random, depth: int = 2) -> Schema:
    """A schema whose values are short."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "pattern", "any"]
    kind = generator.choice(kinds + ["object", "array"] * (4 if depth else 0))
    match kind:
        case "string":
            least = generator.randint(0, 2)
            return {"type": "string", "minLength": least, "maxLength": least + 3}
        case "integer" | "number":
            low = generator.randint(-50, 50)
            return {"type": kind, "minimum": low, "maximum": low + generator.randint(0, 99)}
        case "boolean" | "null":
            return {"type": kind}
        case "enum":
            values = ["red", "blue", 7, None, True, "é\n"]
            return {"enum": generator.sample(values, generator.randint(1, 4))}
        case "pattern":
            return {"type": "string", "pattern": "^[a-c]{1,3}-[0-9]{2}$"}
        case "any":
            return {"anyOf": [random_schema(generator, 0) for _ in range(2)]}
        case "array":
            items = random_schema(generator, depth - 1)
            return {"type": "array", "items": items, "minItems": 1, "maxItems": 2}
    names = generator.sample(["a", "bb", "c c", 'd"'], generator.randint(1, 2))
    return {
        "type": "object",
        "properties": {name: random_schema(generator, depth - 1) for name in names},
        "required": names[: generator.randint(0, len(names))],
        "additionalProperties": False,
    }


def is_valid(value: Any, schema: Schema) -> bool:
    """Whether a value satisfies one of `random_schema`."""
    if "enum" in schema:
        return any(value == one and type(value) is type(one) for one in schema["enum"])
    if "anyOf" in schema:
        return any(is_valid(value, one) for one in schema["anyOf"])
    match schema["type"]:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer" | "number":
            kinds = int if schema["type"] == "integer" else (int, float)
            is_number = isinstance(value, kinds) and not isinstance(value, bool)
            return is_number and schema["minimum"] <= value <= schema["maximum"]
        case "string":
            return isinstance(value, str) and _is_valid_text(value, schema)
        case "array":
            return (
                isinstance(value, list)
                and schema["minItems"] <= len(value) <= schema["maxItems"]
                and all(is_valid(item, schema["items"]) for item in value)
            )
    return (
        isinstance(value, dict)
        and set(schema["required"]) <= value.keys() <= schema["properties"].keys()
        and all(is_valid(item, schema["properties"][name]) for name, item in value.items())
    )


def _is_valid_text(value: str, schema: Schema) -> bool:
    if "pattern" in schema:
        head, _, tail = value.partition("-")
        in_bounds = 1 <= len(head) <= 3 and len(tail) == 2
        return in_bounds and set(head) <= set("abc") and set(tail) <= set("0123456789")
    return bool(schema["minLength"] <= len(value) <= schema["maxLength"])
