"""Searches for masks, widths and chips."""
