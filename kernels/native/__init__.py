"""CPU kernels in C++: what a decode step does besides the matrix products.

torch's operators cost ten microseconds each on a few rows, and a decoder layer has a hundred of
them. These do the same work in six calls a layer. Compiled on first use; without a compiler the
engine runs on torch's operators and says so.
"""
