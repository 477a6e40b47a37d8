"""The proof and the measurements that need a GPU; run by `benchmarks/gpu_check.py`.

Every phase is a module with `run(bench: Bench) -> None` that writes records as they come. Nothing
here is imported by the product.
"""
