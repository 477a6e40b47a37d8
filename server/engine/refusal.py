"""What is known to be wrong here from a model's configuration alone."""

from __future__ import annotations

from typing import Any

from polygraft.adapters.errors import ModelRefused

# Layers that attend to keys by position. Others keep a state, or pick keys by content.
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


def refuse_config(
    model_config: Any, text_config: Any, *, context_length: int, step_tokens: int
) -> None:
    """Raise ModelRefused for what cannot be exact with contexts and steps of this many tokens."""
    if getattr(model_config, "is_encoder_decoder", False):
        raise ModelRefused("encoder-decoder models are not supported; serve a decoder-only model.")
    _refuse_layer_types(text_config)
    _refuse_per_layer_embeddings(text_config)
    _refuse_temperature(text_config, max(context_length, step_tokens))
    for rope in _rope_parameters(text_config):
        _refuse_rope(rope, text_config, context_length)


def _refuse_layer_types(config: Any) -> None:
    unknown = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES)
    if unknown:
        raise ModelRefused(
            f"layers of type {', '.join(unknown)} are not computed by this engine.",
            item="layer_types",
            found=", ".join(unknown),
            allowed=", ".join(sorted(_LAYER_TYPES)),
            hint="Serve a model whose every layer is full or sliding-window attention.",
        )


def _refuse_per_layer_embeddings(config: Any) -> None:
    """gemma3n and the small gemma4 look token ids up again in every layer; a row of a soft prompt
    has none, and transformers searches the whole table for those of the others."""
    if getattr(config, "hidden_size_per_layer_input", None):
        raise ModelRefused(
            "per-layer embeddings are found by token id, which rows of soft prompts do not have.",
            item="hidden_size_per_layer_input",
            found=config.hidden_size_per_layer_input,
            allowed=0,
            hint="Serve a member of the family without them.",
        )


def _refuse_temperature(config: Any, longest: int) -> None:
    """llama4 scales queries by how many `floor_scale`s of *rows* stand before them, which are
    positions only when one sequence runs alone."""
    scale = getattr(config, "floor_scale", None)
    if getattr(config, "attn_temperature_tuning", False) and scale and longest >= scale:
        raise ModelRefused(
            f"attention temperature tuning takes rows of a call for positions, so behind {scale} "
            "rows one request would alter another's result.",
            item="attn_temperature_tuning",
            found=f"floor_scale {scale}, with contexts or steps of {longest} tokens",
            hint=f"Serve it with engine.max_context and max_batch_tokens < {scale}.",
        )


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """One record, or one for each layer type."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    return nested or [rope]


def _refuse_rope(rope: dict[str, Any], config: Any, context_length: int) -> None:
    """`dynamic` and `longrope` look at the longest sequence of the batch, so that one request
    would alter another's result and its cached keys. Up to a limit they never do."""
    kind = rope.get("rope_type", "default")
    if kind == "longrope":
        limit = rope["original_max_position_embeddings"]
    elif "dynamic" in kind:  # transformers asks the same way
        limit = config.max_position_embeddings
    else:
        return
    if context_length > limit:
        raise ModelRefused(
            f"RoPE scaling {kind!r} changes when any sequence of the batch passes {limit} "
            "positions, so one request would alter another's result.",
            item="rope_parameters.rope_type",
            found=f"{kind}, with a context of {context_length}",
            allowed="default, linear, yarn, llama3",
            hint=f"Serve it with engine.max_context <= {limit}.",
        )


def refuse_quantized(config: Any) -> None:
    """Raise ModelRefused if a loaded model still has quantized layers, going by its config."""
    quantization = getattr(config, "quantization_config", None)
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise ModelRefused(
            f"the checkpoint is quantized ({method or type(quantization).__name__}), and its "
            "layers compute something else than y = W x.",
            item="quantization_config",
            found=str(method or type(quantization).__name__),
            hint="Serve the checkpoint that it was made from.",
        )
