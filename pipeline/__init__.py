"""The stages from a catalogue to suspects; the only place that knows Ray, Arrow and FAISS."""

from pipeline.runtime import choose_blas_kernels

# Before any module of the package can import FAISS, whose BLAS looks at the environment when it is loaded.
choose_blas_kernels()
