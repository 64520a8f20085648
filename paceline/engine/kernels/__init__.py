"""What the CPU computes between matrix products, compiled by numba from vector code.

`vectors` writes LLVM instructions, `attention` and `layers` are the kernels. numba caches machine code by
the time stamp of a kernel's own file: after a change in `vectors`, run `make clean-kernels`.
"""
