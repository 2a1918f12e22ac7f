"""The engine's kernels, one kind of operation each."""
