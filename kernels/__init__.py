"""Numerical core: multi-adapter LoRA, its plan, and attention. Knows tensors only."""
