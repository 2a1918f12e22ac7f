"""Published and imagined models: shapes without weights."""
