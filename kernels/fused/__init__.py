"""Multi-adapter LoRA fused into the base matmul: its plan, its Triton kernel, its torch twin.

Only `kernel`, `launch` and `compile_check` import Triton; nothing else imports them before it runs
on a GPU.
"""
