"""Settings of the engine. Derived choices ("auto") are resolved when the base is loaded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from polygraft.kernels.linear import WeightFormat

Weight = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class EngineConfig(BaseModel):
    """What the engine may use. Every limit is enforced, none means "unbounded"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Serving dtype; auto: the checkpoint's, bfloat16 only where the CPU has it; on "
        "a GPU bfloat16.",
    )
    device: str = Field(
        "cpu",
        pattern=r"^(cpu|cuda(:\d{1,2})?)$",
        description="Where the model runs: cpu, cuda or cuda:N (docs/gpu.md).",
    )
    device_memory: float = Field(
        0.9,
        gt=0,
        lt=1,
        description="Part of a GPU's memory to use, the model's weights included.",
    )
    device_adapters: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Part of what the weights leave of it that adapters get where pool_rows is "
        "not set; the rest is for keys and values.",
    )
    cuda_graphs: bool = Field(
        True, description="Replay small steps on a GPU from captured graphs (off: launch each)."
    )
    threads: int | None = Field(
        None,
        gt=0,
        le=1024,
        description="Compute threads; unset: one per usable core.",
    )
    max_running: int = Field(64, gt=0, le=4096, description="Sequences in one step at most.")
    max_batch_tokens: int | None = Field(
        None,
        gt=0,
        description="Tokens computed in one step at most (decodes and prefill chunks); unset: 128, "
        "or 64 more than max_running; on a GPU 2048. More of them make prompts faster and the gaps "
        "between other requests' tokens longer.",
    )
    max_chunk: int | None = Field(
        None,
        gt=0,
        description="Prompt tokens of one sequence in one step; bounds token latency. Unset: 128, "
        "on a GPU 1024.",
    )
    max_step_adapters: int = Field(
        256, gt=0, description="Distinct adapters in one step at most; fewer are grouped more."
    )
    max_step_columns: int = Field(
        8192, gt=0, description="Rank columns of all adapters in one step at most."
    )
    max_skip: float = Field(
        1.0,
        gt=0,
        description="Seconds that a request is passed over because its adapter is not at hand.",
    )
    block_size: int = Field(16, gt=0, le=1024, description="Tokens per KV block.")
    kv_bytes: int | None = Field(
        None,
        gt=0,
        description="Memory for keys and values, in bytes; rounded to blocks. Unset: 1 GiB, on a "
        "GPU what device_memory leaves.",
    )
    prefix_cache: bool = Field(True, description="Reuse keys and values of equal prefixes.")
    pool_rows: int | None = Field(
        None,
        ge=16,
        le=1 << 20,
        multiple_of=16,
        description="Rank rows for resident LoRA adapters, in all. Unset: 512, on a GPU what "
        "device_adapters leaves.",
    )
    virtual_token_rows: int = Field(
        16384,
        ge=1,
        description="Rows of the hidden size for resident soft prompts (one per virtual token), "
        "prefixes (one per hidden size of their keys and values) and whatever adapters change "
        "besides low-rank updates, in total.",
    )
    max_queued_requests: int = Field(1024, gt=0, description="Requests waiting at most.")
    max_queued_tokens: int = Field(
        1 << 20, gt=0, description="Prompt tokens of waiting requests at most."
    )
    namespace_weights: dict[str, Weight] = Field(
        default_factory=dict,
        description="Shares of namespaces that compete, as name=weight,...; others have 1.",
    )
    adapter_weights: dict[str, Weight] = Field(
        default_factory=dict,
        description="Shares of adapters that compete inside a namespace, by full name; else 1.",
    )
    namespace_queue_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Part of the queue that one namespace may fill while others wait as well.",
    )
    speculation: Literal["off", "auto"] = Field(
        "auto",
        description="Guess tokens from what a request repeats and check several in one step; a "
        "request may say otherwise.",
    )
    speculation_tokens: int = Field(
        7, gt=0, le=64, description="Tokens guessed for one sequence in one step at most."
    )
    speculation_max_rows: int = Field(
        8, gt=1, description="Tokens of a step with guesses at most; fuller steps have none."
    )
    max_context: int | None = Field(
        None, gt=0, description="Context length to serve; unset: the model's own."
    )
    weight_format: WeightFormat = Field(
        "packed",
        description="packed: laid out for the CPU's matrix units; int8: rounded to 8 bits by row "
        "(faster, not exact: docs/benchmarks.md); plain: as in the checkpoint.",
    )
    native_kernels: bool = Field(
        True,
        description="Compile and use the C++ kernels (off, or without a compiler: torch's).",
    )

    @property
    def is_on_gpu(self) -> bool:
        """Whether the model runs on a GPU."""
        return self.device != "cpu"

    @property
    def step_tokens(self) -> int:
        """Tokens of one step at most."""
        least = 2048 if self.is_on_gpu else 128
        return self.max_batch_tokens or max(least, self.max_running + 64)

    @property
    def chunk_tokens(self) -> int:
        """Prompt tokens of one sequence in one step at most."""
        return self.max_chunk or (1024 if self.is_on_gpu else 128)

    @field_validator("namespace_weights", "adapter_weights", mode="before")
    @classmethod
    def _read_weights(cls, value: object) -> object:
        """A variable or an option gives text."""
        if not isinstance(value, str):
            return value
        pairs = (part.rpartition("=") for part in value.split(",") if part.strip())
        return {name.strip(): weight for name, _, weight in pairs}

    @model_validator(mode="after")
    def _every_running_sequence_has_a_row(self) -> EngineConfig:
        if self.step_tokens < self.max_running:
            raise ValueError(
                f"max_batch_tokens ({self.max_batch_tokens}) must be at least max_running "
                f"({self.max_running}): each running sequence takes one token of every step"
            )
        return self
