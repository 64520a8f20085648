"""The CPU's kernels, compiled by numba. In the order of a forward:

| step of a decoder layer | kernel | products by |
|---|---|---|
| all steps of all layers, one after the other on one team of threads | `sequence.run` | |
| residual sum and norm | `layers.normalize` | |
| where the layer before is kept: its rows' states to their slots | `states.keep` | |
| q, k and v of all rows | `products.multiply` | `amx` (bfloat16) or `panels` |
| rotary position embedding | `layers.rotate` | |
| keys and values to their slots in the pool | `attention.write_rows` | |
| attention | `attention.attend` | `attention_pairs` (matrix unit) or `attention_vectors` |
| output projection | `products.multiply` | `amx` or `panels` |
| residual sum and norm | `layers.normalize` | |
| gate and up | `products.multiply` | `amx` or `panels` |
| SwiGLU | `layers.gate` | |
| down | `products.multiply` | `amx` or `panels` |

Behind the last layer: `states.keep` where its states are kept, `layers.normalize` and the head by
`products.multiply`, then `ranking.highest` on the logits.

Below them: `attention_task` (what attention is given, and each thread's scratch), `operations` (softmax,
scaling and multiply-add over rows of numbers), `amx` (instructions of the matrix unit) and `vectors` (LLVM
instructions on vectors of 16 numbers).

A kernel takes the address of one task: a numpy record of addresses and counts, whose fields stand beside
it. `engine.cpu` fills the records in (`attention`, `linear`, `fused`, `ranking`) and calls the kernels
(`team`). numba caches machine code by the time stamp of a kernel's own file: after a change in a file that it
imports, run `make clean-kernels`.
"""
