"""Pieces of the kernels that are written as LLVM IR."""
