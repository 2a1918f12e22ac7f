"""Compilation of kernels by Numba, and where compiled ones are kept."""
