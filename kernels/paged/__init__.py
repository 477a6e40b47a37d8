"""Attention over a paged KV cache on a GPU: its plan, its Triton kernel, its torch twin.

Only `kernel`, `launch` and `compile_check` import Triton; nothing else imports them before it runs
on a GPU.
"""
