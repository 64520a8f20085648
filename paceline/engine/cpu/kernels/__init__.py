"""What the CPU computes in a forward, compiled by numba from vector code.

`vectors` writes LLVM instructions, `operations` what kernels do with them to rows of numbers; `products`,
`attention` (in four files) and `layers` are the kernels, `sequence` runs them one after the other. numba
caches machine code by the time stamp of a kernel's own file: after a change in a file that it imports, run
`make clean-kernels`.
"""
