"""What a GPU's memory is divided into: weights, working memory, adapters, keys and values."""

from __future__ import annotations

from dataclasses import dataclass

from polygraft.adapters.errors import InvalidRequest

_ROW_UNIT = 16
_MOST_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class DeviceNeeds:
    """Bytes that follow from the base and the settings."""

    row_bytes: int  # of one rank row in all sites
    block_bytes: int  # of one block of keys and values in all layers
    working_bytes: int  # of the largest step, and of what is resident beside rank rows


@dataclass(frozen=True, slots=True)
class DeviceBudget:
    """What there is room for."""

    pool_rows: int
    kv_bytes: int


def divide(
    needs: DeviceNeeds,
    *,
    total_bytes: int,
    free_bytes: int,
    memory_part: float,
    adapter_part: float,
    pool_rows: int | None,
    kv_bytes: int | None,
) -> DeviceBudget:
    """total_bytes, free_bytes: of the device, after the weights were loaded. pool_rows, kv_bytes:
    as the settings want them; None: what is left. Raises InvalidRequest if it is too little.
    """
    taken = total_bytes - free_bytes
    left = int(total_bytes * memory_part) - taken - needs.working_bytes
    rows = pool_rows
    if rows is None:
        rows = int(left * adapter_part) // needs.row_bytes // _ROW_UNIT * _ROW_UNIT
        rows = max(0, min(rows, _MOST_ROWS))
    left -= rows * needs.row_bytes
    if rows < _ROW_UNIT or left < max(needs.block_bytes, kv_bytes or 0):
        raise InvalidRequest(
            f"the device has {total_bytes} bytes, of which {taken} are taken (weights and other "
            f"processes) and a step needs {needs.working_bytes}: {rows} rank rows of "
            f"{needs.row_bytes} bytes leave {left} bytes for keys and values, of which "
            f"{max(needs.block_bytes, kv_bytes or 0)} are wanted.",
            item="engine.device_memory",
            found=memory_part,
            hint="Serve a smaller base, lower pool_rows, kv_bytes, max_batch_tokens or "
            "max_running, or raise device_memory.",
        )
    return DeviceBudget(rows, kv_bytes or left)
