"""Polygraft: one frozen base model, per-task LoRA and soft-prompt adapters swapped per request.

Each subpackage is the top-level folder of the same name, linked here. Importing `polygraft`
imports nothing heavy: torch, transformers and grpc are loaded by the parts that need them.
"""

__version__ = "0.1.0"
