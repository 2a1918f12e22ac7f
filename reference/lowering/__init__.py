"""Quantised networks to integer programs."""
