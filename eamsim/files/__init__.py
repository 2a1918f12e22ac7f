"""Containers, tables and packed bits: what lies on a disk."""
