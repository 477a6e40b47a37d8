"""Steps on a GPU: static tables, fused low-rank updates, paged attention, captured graphs.

Everything but capture and streams runs on a CPU as well, with Triton's interpreter or the kernels'
torch twins; that is how it is tested where there is no GPU. Triton is imported by nobody before a
path with its kernels is made.
"""
