"""The figures of `eamsim cost` and of the report."""
