"""Reads adapter_config.json: every key is used, known to have no effect, or must be at its default.

PEFT ignores keys it does not know; a key that changes the mathematics would then be dropped
without a word. Here it is refused by name. Keys follow PEFT 0.21; older configs have fewer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from polygraft.adapters.errors import (
    AdapterIncompatible,
    AdapterInvalid,
    AdapterUnsupported,
    raise_all,
)
from polygraft.adapters.features import (
    CONVERT,
    PLAIN_INITS,
    QUANTIZED,
    Method,
    Status,
    hints,
    keys,
)
from polygraft.adapters.files import CONFIG_FILE
from polygraft.adapters.patterns import PatternMap

PROMPT_TYPES = ("PROMPT_TUNING", "P_TUNING")
PREFIX_TYPE = "PREFIX_TUNING"
BIASES = ("none", "all", "lora_only")
ACCEPTED_TYPES = ("LORA", *PROMPT_TYPES, PREFIX_TYPE)


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What a LoRA config contributes besides the tensors. `rank` and `alpha` take module names."""

    rank: PatternMap
    alpha: PatternMap
    use_rslora: bool
    peft_version: str | None
    use_dora: bool = False
    lora_bias: bool = False
    bias: str = "none"  # or "all", "lora_only": which biases were trained
    modules_to_save: tuple[str, ...] = ()  # ends of the names of modules trained in full
    token_indices: tuple[int, ...] | None = None  # of the tokens whose embeddings were trained
    token_layer: str | None = None  # end of the embedding's name, if the config says it
    ensure_weight_tying: bool = False  # changes of embedding and head are the same
    has_velora: bool = False

    def scaling(self, module: str, rank: int) -> float:
        """alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA (arXiv 2312.03732)."""
        divisor = math.sqrt(rank) if self.use_rslora else rank
        return float(self.alpha.values(module)[0]) / divisor


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """What a prompt tuning or p-tuning config says about its one tensor."""

    num_virtual_tokens: int
    token_dim: int | None
    peft_type: str
    peft_version: str | None


@dataclass(frozen=True, slots=True)
class PrefixSettings:
    """How a prefix tuning config says that its one tensor is divided into keys and values."""

    num_virtual_tokens: int
    num_layers: int
    kv_heads: int  # PEFT calls them num_attention_heads
    token_dim: int  # width of the keys of all heads of one layer, and of the values
    peft_version: str | None


Settings = LoraSettings | PromptSettings | PrefixSettings
Problems = list[AdapterInvalid | AdapterIncompatible]


def parse_config(config: Mapping[str, object]) -> Settings:
    """Checks every key; raises AdapterInvalid or AdapterUnsupported naming all that are wrong."""
    peft_type = config.get("peft_type")
    if not isinstance(peft_type, str) or peft_type not in ACCEPTED_TYPES:
        raise _unsupported(
            "peft_type", peft_type, " or ".join(ACCEPTED_TYPES), "Retrain with an accepted method."
        )
    problems: Problems = []
    settings: Settings
    if peft_type == "LORA":
        settings = _parse_lora(config, problems)
    elif peft_type == PREFIX_TYPE:
        settings = _parse_prefix(config, problems)
    else:
        settings = _parse_prompt(config, peft_type, problems)
    raise_all(problems)
    return settings


def _parse_lora(config: Mapping[str, object], problems: Problems) -> LoraSettings:
    _check_keys(config, Method.LORA, problems)
    _check_init(config.get("init_lora_weights", True), problems)
    token_indices, token_layer = _token_indices(config, problems)
    return LoraSettings(
        rank=PatternMap(
            "rank_pattern",
            _patterns(config, "rank_pattern", _is_rank, problems),
            _number(config, "r", 8, _is_rank, "an integer of at least 1", problems),
        ),
        alpha=PatternMap(
            "alpha_pattern",
            _patterns(config, "alpha_pattern", _is_number, problems),
            _number(config, "lora_alpha", 8, _is_number, "a finite number", problems),
        ),
        use_rslora=_flag(config, "use_rslora", problems),
        peft_version=_version(config),
        use_dora=_flag(config, "use_dora", problems),
        lora_bias=_flag(config, "lora_bias", problems),
        bias=_bias(config, problems),
        modules_to_save=_modules_to_save(config, problems),
        token_indices=token_indices,
        token_layer=token_layer,
        ensure_weight_tying=_flag(config, "ensure_weight_tying", problems),
        has_velora=bool(config.get("velora_config")),
    )


def _bias(config: Mapping[str, object], problems: Problems) -> str:
    value = config.get("bias") or "none"
    if value not in BIASES:
        problems.append(_invalid("bias", value, ", ".join(BIASES)))
    return value if isinstance(value, str) else "none"


def _modules_to_save(config: Mapping[str, object], problems: Problems) -> tuple[str, ...]:
    value = config.get("modules_to_save") or []
    if isinstance(value, list) and all(isinstance(item, str) and item for item in value):
        return tuple(value)
    problems.append(_invalid("modules_to_save", value, "a list of names"))
    return ()


def _token_indices(
    config: Mapping[str, object], problems: Problems
) -> tuple[tuple[int, ...] | None, str | None]:
    """Indices, and the layer they belong to if it is named: a list, or {layer: list}."""
    key = "trainable_token_indices"
    value, layer = config.get(key) or None, None
    if isinstance(value, dict) and len(value) == 1:
        ((layer, value),) = value.items()
    elif isinstance(value, dict):
        hint = "Retrain with the tokens of the input embedding only."
        problems.append(_unsupported(key, value, "those of one layer", hint))
        return None, None
    if value is None:
        return None, None
    if not isinstance(value, list) or not value or not all(type(i) is int for i in value):
        problems.append(_invalid(key, value, "a list of token ids"))
        return None, None
    return tuple(value), layer


def _parse_prompt(
    config: Mapping[str, object], peft_type: str, problems: Problems
) -> PromptSettings:
    _check_keys(config, Method.PROMPT, problems)
    _check_submodules(config, problems)
    token_dim = config.get("token_dim")
    if token_dim is not None and not _is_rank(token_dim):
        problems.append(_invalid("token_dim", token_dim, "an integer of at least 1, or null"))
    return PromptSettings(
        num_virtual_tokens=_count(config, "num_virtual_tokens", problems),
        token_dim=token_dim if isinstance(token_dim, int) else None,
        peft_type=peft_type,
        peft_version=_version(config),
    )


def _parse_prefix(config: Mapping[str, object], problems: Problems) -> PrefixSettings:
    _check_keys(config, Method.PREFIX, problems)
    _check_submodules(config, problems)
    return PrefixSettings(
        num_virtual_tokens=_count(config, "num_virtual_tokens", problems),
        num_layers=_count(config, "num_layers", problems),
        kv_heads=_count(config, "num_attention_heads", problems),
        token_dim=_count(config, "token_dim", problems),
        peft_version=_version(config),
    )


def _check_submodules(config: Mapping[str, object], problems: Problems) -> None:
    submodules = config.get("num_transformer_submodules")
    if submodules not in (None, 1):
        hint = "Encoder-decoder prompts do not fit a causal LM."
        problems.append(_unsupported("num_transformer_submodules", submodules, 1, hint))


def _check_keys(config: Mapping[str, object], method: Method, problems: Problems) -> None:
    """Refuses what would change the result: keys that must be off, other tasks, unknown keys.

    An unknown key that is null, false or empty is off: newer PEFT versions write every new
    option, also when it is not used.
    """
    task_type = config.get("task_type")
    if task_type not in (None, "CAUSAL_LM"):
        hint = "Heads of other tasks are not served."
        problems.append(_unsupported("task_type", task_type, "CAUSAL_LM or null", hint))
    known = keys(method, Status.SERVED, Status.IGNORED) | {"peft_type", "task_type"}
    ways_out = hints()
    for key, value in config.items():
        if key in known or _is_off(value):
            continue
        hint = ways_out.get(key, "This key is unknown here; retrain without it.")
        problems.append(_unsupported(key, value, "null, false or empty", hint))


def _check_init(value: object, problems: Problems) -> None:
    name = json.dumps(value).strip('"').lower() if isinstance(value, (bool, str)) else ""
    if name in PLAIN_INITS:
        return
    hint = "Retrain with init_lora_weights=True."
    if name.startswith(("pissa", "olora", "corda", "lora_ga")):
        hint = CONVERT
    elif name == "loftq":
        hint = QUANTIZED
    problems.append(_unsupported("init_lora_weights", value, ", ".join(PLAIN_INITS), hint))


def _patterns(
    config: Mapping[str, object],
    key: str,
    is_valid: Callable[[object], bool],
    problems: Problems,
) -> dict[str, float]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        problems.append(_invalid(key, value, "an object from pattern to number"))
        return {}
    wrong = {name: item for name, item in value.items() if not is_valid(item)}
    problems.extend(
        _invalid(f"{key}[{name[:80]}]", item, "as the default of this pattern")
        for name, item in wrong.items()
    )
    return {name: item for name, item in value.items() if name not in wrong}


def _number(
    config: Mapping[str, object],
    key: str,
    default: float | None,
    is_valid: Callable[[object], bool],
    allowed: str,
    problems: Problems,
) -> float:
    value = config.get(key, default)
    if is_valid(value):
        return value  # type: ignore[return-value]  # is_valid has looked
    problems.append(_invalid(key, value, allowed))
    return 1


def _count(config: Mapping[str, object], key: str, problems: Problems) -> int:
    return int(_number(config, key, None, _is_rank, "an integer of at least 1", problems))


def _flag(config: Mapping[str, object], key: str, problems: Problems) -> bool:
    value = config.get(key, False)
    if not isinstance(value, bool):
        problems.append(_invalid(key, value, "true or false"))
    return value is True


def _version(config: Mapping[str, object]) -> str | None:
    value = config.get("peft_version")
    return value[:64] if isinstance(value, str) else None


def _is_rank(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: object) -> bool:
    return type(value) in (int, float)  # parse_json has refused NaN and infinities


def _is_off(value: object) -> bool:
    return value is None or value is False or value in ("", [], {})


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _invalid(key: str, value: object, allowed: str) -> AdapterInvalid:
    return AdapterInvalid(
        f"{_shown(value)} is not valid (allowed: {allowed}).",
        file=CONFIG_FILE,
        item=key,
        found=value,
        allowed=allowed,
    )


def _unsupported(key: str, value: object, allowed: object, hint: str) -> AdapterUnsupported:
    return AdapterUnsupported(
        f"{_shown(value)} is not supported (supported: {allowed}).",
        file=CONFIG_FILE,
        item=key,
        found=value,
        allowed=allowed,
        hint=hint,
    )
