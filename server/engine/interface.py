"""How attention leaves transformers' modeling code and enters the engine.

transformers calls the function registered for a model's attention implementation, once per layer.
Two are registered here: the one that serves, and the one that only records, for the probe. The
first has no mask function beside it, so that transformers builds no mask in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from polygraft.adapters.errors import ModelRefused
from polygraft.server.engine.masks import pattern_mask

SERVING = "polygraft"
PROBING = "polygraft-probe"

_ATTEND = "_polygraft_attend"  # attribute of an attention module: who computes it

# Arguments that models pass and that change nothing here. Anything else that is set is refused.
_BENIGN = frozenset({"position_ids", "use_cache", "output_router_logits", "dropout"})

AttendFn = Callable[..., Tensor]


def install_attention(modules: Iterable[nn.Module], attend: AttendFn) -> None:
    """Let these modules call `attend(module, q, k, v, scaling, window, softcap, sinks)`.

    q: [H, T, D]; k, v: [Hkv, T, D] -> [T, H, D_v]. While a model is on PROBING, `attend` gets the
    mask that the model passed as one more argument.
    """
    for module in modules:
        module.__dict__[_ATTEND] = attend


def remove_attention(modules: Iterable[nn.Module]) -> None:
    """Undo `install_attention`."""
    for module in modules:
        module.__dict__.pop(_ATTEND, None)


def _serve(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """query: [1, H, T, D]; key, value: [1, Hkv, T, D]; s_aux: [H], gpt-oss's word for sinks."""
    _refuse_unknown(module, {**extra, "attention_mask": attention_mask})
    attend: AttendFn = module.__dict__[_ATTEND]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = attend(module, query[0], key[0], value[0], scale, sliding_window, softcap, s_aux)
    return out[None], None  # [1, T, H, D_v]


def _record(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """As `_serve`, for the probe, which wants the mask."""
    _refuse_unknown(module, extra)
    attend: AttendFn = module.__dict__[_ATTEND]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = attend(
        module, query[0], key[0], value[0], scale, sliding_window, softcap, s_aux, attention_mask
    )
    return out[None], None


def _refuse_unknown(module: nn.Module, extra: dict[str, Any]) -> None:
    unknown = sorted(
        name
        for name, value in extra.items()
        if name not in _BENIGN and value is not None and value is not False
    )
    if unknown:
        raise ModelRefused(
            f"attention of {type(module).__name__} uses {', '.join(unknown)}, which this engine "
            "does not compute.",
            item="attention",
            found=", ".join(unknown),
            hint="Serve a model without it.",
        )


AttentionInterface.register(SERVING, _serve)
AttentionInterface.register(PROBING, _record)
AttentionMaskInterface.register(PROBING, pattern_mask)
