"""What of PEFT is served, refused or without effect: one table, read by code, documents and tests.

`config.py` takes the keys and the ways out from here, `scripts/generate-adapter-features` writes
docs/adapters.md from it, and the corpus of adapters in the tests has a case for every row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum


class Status(Enum):
    """What happens to a feature."""

    SERVED = "served"
    REFUSED = "refused"
    IGNORED = "ignored"  # it has no effect on what is computed


class Method(Enum):
    """To which of PEFT's methods a row belongs."""

    ANY = "every method"
    LORA = "LoRA"
    PROMPT = "prompt tuning and p-tuning"
    PREFIX = "prefix tuning"


@dataclass(frozen=True, slots=True)
class Feature:
    """One row. `keys` are those of adapter_config.json; `text` says what is done with it, and of
    a refused feature what the uploader can do."""

    name: str
    method: Method
    status: Status
    text: str
    keys: tuple[str, ...] = ()


RETRAIN = "Merge it into the base, or retrain without it."
CONVERT = (
    "This initialisation rewrites the base before training. Convert to a plain LoRA: save the "
    "untrained adapter with init_lora_weights=True, then the trained one with save_pretrained("
    "path_initial_model_for_weight_conversion=...)."
)
QUANTIZED = (
    "LoftQ trains against a base that it has quantized, and no plain LoRA on this base is the "
    "same. Merge it into the base that it was trained with, or retrain with "
    "init_lora_weights=True."
)
# Initialisations that leave the base alone, so that reading the tensors plainly is exact.
PLAIN_INITS = ("true", "false", "gaussian", "orthogonal", "eva", "mica")
BEGIN, END = "<!-- features -->", "<!-- /features -->"  # around the table of docs/adapters.md
_LORA, _SERVED, _REFUSED = Method.LORA, Status.SERVED, Status.REFUSED


def _served(name: str, text: str, *keys: str, method: Method = _LORA) -> Feature:
    return Feature(name, method, _SERVED, text, keys)


def _refused(name: str, text: str, *keys: str, method: Method = _LORA) -> Feature:
    return Feature(name, method, _REFUSED, text, keys)


def _ignored(name: str, text: str, *keys: str, method: Method = _LORA) -> Feature:
    return Feature(name, method, Status.IGNORED, text, keys)


FEATURES: tuple[Feature, ...] = (
    _served(
        "low-rank updates",
        "On any linear layer that every token passes once, merged projections (`qkv_proj`, "
        "`gate_up_proj`) and GPT-2's `Conv1D` included; the rank is the tensor's own.",
        "r",
        "lora_alpha",
    ),
    _served("rank-stabilised scale", "`lora_alpha / sqrt(r)`.", "use_rslora"),
    _served(
        "ranks and scales by layer",
        "As PEFT matches them; patterns that could take long to match are refused.",
        "rank_pattern",
        "alpha_pattern",
    ),
    _served(
        "initialisations that leave the base alone",
        f"`{'`, `'.join(PLAIN_INITS)}`: the tensors say it all.",
        "init_lora_weights",
    ),
    _served(
        "biases",
        "`all` and `lora_only`: of linear layers that every token passes once, of norms "
        "and of the output head.",
        "bias",
    ),
    _served("a bias of LoRA", "Added with the scale of its layer.", "lora_bias"),
    _served(
        "trainable tokens",
        "Of the input embedding; a tied output head follows it, as in PEFT.",
        "trainable_token_indices",
    ),
    _served("DoRA", "On linear layers but the output head; g goes into B.", "use_dora"),
    _served(
        "modules trained in full",
        "The output head, the input embedding and norms of whole rows. Others are refused: merge "
        "them into the base.",
        "modules_to_save",
    ),
    _served(
        "LoRA on an embedding",
        "On the input embedding; a tied output head stays as it is, as in PEFT. The copy of the "
        "base's weight that PEFT saves must be the base's.",
    ),
    _served(
        "LoRA on the output head",
        "A tied embedding stays as it is, as in PEFT. The copy of the base's weight that PEFT "
        "saves must be the base's.",
    ),
    _served(
        "embedding and head tied to each other",
        "Served if both changes are in the file, and equal where the base ties the two.",
        "ensure_weight_tying",
    ),
    _served(
        "VeLoRA",
        "It changes only how gradients are kept in training; its projection is dropped.",
        "velora_config",
    ),
    _refused("PiSSA, OLoRA, CorDA and LoRA-GA", CONVERT, "init_lora_weights"),
    _refused("LoftQ", QUANTIZED, "init_lora_weights"),
    _refused(
        "expert weights and other bare parameters",
        "Expert parameters are not supported; train on attention only.",
        "target_parameters",
    ),
    _refused("aLoRA", "Retrain as a plain LoRA.", "alora_invocation_tokens"),
    _refused("layers used twice", RETRAIN, "layer_replication"),
    _refused("QA-LoRA", RETRAIN, "use_qalora"),
    _refused("block-diagonal LoRA", RETRAIN, "use_bdlora"),
    _refused("KaSA", RETRAIN, "kasa_config"),
    _refused("MonteCLoRA", RETRAIN, "monteclora_config"),
    _refused("Arrow", RETRAIN, "arrow_config"),
    _refused("Megatron layers", RETRAIN, "megatron_config"),
    _ignored(
        "which layers were matched",
        "The tensors' names say it.",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
    ),
    _ignored("how the base stores its weight", "Says nothing about the update.", "fan_in_fan_out"),
    _ignored(
        "what matters in training only",
        "No effect on inference.",
        "lora_dropout",
        "megatron_core",
        "qalora_group_size",
    ),
    _ignored(
        "settings of initialisations",
        "`init_lora_weights` alone says which one was used; a converted adapter keeps them.",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "loftq_config",
    ),
    _served(
        "soft prompts",
        "Its rows stand before the prompt; the encoder of p-tuning is applied when it is saved.",
        "num_virtual_tokens",
        "token_dim",
        "num_transformer_submodules",
        method=Method.PROMPT,
    ),
    _ignored(
        "how it was begun and trained",
        "No effect on inference.",
        "num_attention_heads",
        "num_layers",
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "prompt_tuning_init_state_dict_path",
        "tokenizer_name_or_path",
        "tokenizer_kwargs",
        "encoder_reparameterization_type",
        "encoder_hidden_size",
        "encoder_num_layers",
        "encoder_dropout",
        method=Method.PROMPT,
    ),
    _served(
        "prefixes",
        "Its keys and values go into the cache as they are.",
        "num_virtual_tokens",
        "token_dim",
        "num_transformer_submodules",
        "num_layers",
        "num_attention_heads",
        method=Method.PREFIX,
    ),
    _ignored(
        "how it was begun and trained",
        "A projection is applied when it is saved.",
        "init_weights",
        "encoder_hidden_size",
        "prefix_projection",
        method=Method.PREFIX,
    ),
    _refused("other tasks", "Heads of other tasks are not served.", "task_type", method=Method.ANY),
    _refused(
        "every other method", "Retrain with an accepted method.", "peft_type", method=Method.ANY
    ),
    _refused(
        "a key that is not known",
        "This key is unknown here; retrain without it.",
        method=Method.ANY,
    ),
    _ignored(
        "where it came from",
        "Recorded or ignored; never decides anything.",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "peft_version",
        method=Method.ANY,
    ),
)


def keys(method: Method, *statuses: Status) -> frozenset[str]:
    """The keys of a method's rows, and of those of every method, that have one of `statuses`."""
    return frozenset(_keys(method, statuses))


def hints() -> Mapping[str, str]:
    """What to do instead, for every key that must be off: null, false or empty."""
    switches = [row for row in FEATURES if row.method is Method.LORA and row.status is _REFUSED]
    return {key: row.text for row in switches for key in row.keys}


def _keys(method: Method, statuses: tuple[Status, ...]) -> Iterator[str]:
    for row in FEATURES:
        if row.method in (method, Method.ANY) and row.status in statuses:
            yield from row.keys


def markdown() -> str:
    """The table of docs/adapters.md, with a last newline."""
    lines = ["| | in the config | | what happens, or what to do |", "|---|---|---|---|"]
    for method in Method:
        lines.append(f"| **{method.value}** | | | |")
        for row in FEATURES:
            if row.method is method:
                listing = ", ".join(f"`{key}`" for key in row.keys)
                lines.append(f"| {row.name} | {listing} | {row.status.value} | {row.text} |")
    return "\n".join(lines) + "\n"


def between_marks(page: str) -> str:
    """`page` with the present table between its marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{markdown()}{END}{after}"
