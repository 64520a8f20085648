"""What the CPU computes between matrix products, compiled by numba from vector code.

`vectors` writes LLVM instructions, `operations` what kernels do with them to rows of numbers; `attention` and
`layers` are the kernels. numba caches machine code by the time stamp of a kernel's own file: after a change
in a file that it imports, run `make clean-kernels`.
"""
