"""Sizes of the base models that the project can build."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """Shape and schedule of a base model; everything that decides the weights but the seed."""

    hidden: int
    layers: int
    heads: int
    mlp: int
    vocabulary: int
    cycles: tuple[int, ...]
    """Steps of each round of the schedule: warm up, stay flat, fall linearly to zero."""
    context: int = 512
    batch_tokens: int = 4096
    """Padded tokens per step."""
    hidden_lr: float = 4e-3
    """Muon, for the matrices inside the layers; scaled to AdamW's update size."""
    other_lr: float = 4e-3
    """AdamW, for embeddings and norms."""
    weight_decay: float = 0.05
    warmup: int = 150
    decay_share: float = 0.45
    """The last share of each cycle, in which the rates fall."""
    copy_steps: int = 1000
    """The first steps, in which copying skills come three times as often."""
    prompt_weight: float = 0.1
    """Loss weight of prompt tokens; completion tokens weigh 1."""
    split_documents: float = 0.4
    """Share of the documents in which tokens are split back into the pieces they merged from."""
    split_probability: float = 0.15

    @property
    def steps(self) -> int:
        """Steps of all cycles."""
        return sum(self.cycles)


PRESETS = {
    "nano": Preset(hidden=128, layers=4, heads=4, mlp=336, vocabulary=1024, cycles=(8000, 7000)),
    "small": Preset(hidden=256, layers=6, heads=8, mlp=672, vocabulary=2048, cycles=(20000,)),
}
