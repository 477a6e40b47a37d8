"""Catastrophic forgetting: what a base could do before a change, with it, and without it again."""
