"""How much is measured: from a smoke test to a full run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Setting:
    """One row per system in the result."""

    num_adapters: int  # 0: every request is for the base alone
    concurrency: int
    num_requests: int  # a round


@dataclass(frozen=True, slots=True)
class Preset:
    """A model, the settings measured on it, and how often."""

    model: str  # a key of models.MODELS
    settings: tuple[Setting, ...]
    num_rounds: int
    prompt_tokens: tuple[int, int]  # least and most
    output_tokens: int

    @property
    def num_adapters(self) -> int:
        """The most adapters that any setting asks for."""
        return max(setting.num_adapters for setting in self.settings)

    @property
    def concurrency(self) -> int:
        """The most requests that are ever in flight."""
        return max(setting.concurrency for setting in self.settings)


PRESETS = {
    "smoke": Preset("tiny", (Setting(4, 1, 2), Setting(4, 4, 8), Setting(0, 4, 8)), 1, (4, 16), 8),
    "quick": Preset(
        "smollm2-135m",
        (Setting(16, 1, 3), Setting(16, 8, 16), Setting(16, 32, 64)),
        2,
        (32, 128),
        64,
    ),
    # What the project set out to reach, and the tax that adapters are. Sized for the slowest peer.
    "issue": Preset(
        "smollm2-135m",
        (
            Setting(16, 1, 3),
            Setting(0, 1, 3),
            Setting(16, 8, 16),
            Setting(0, 8, 16),
            Setting(16, 32, 64),
            Setting(0, 32, 64),
        ),
        2,
        (32, 128),
        64,
    ),
    "full": Preset(
        "smollm2-135m",
        (
            Setting(1, 1, 4),
            Setting(1, 8, 32),
            Setting(8, 1, 4),
            Setting(8, 4, 16),
            Setting(8, 8, 32),
            Setting(8, 16, 64),
            Setting(32, 8, 32),
            Setting(32, 32, 96),
        ),
        3,
        (32, 128),
        64,
    ),
}
