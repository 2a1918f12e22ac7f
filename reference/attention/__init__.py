"""Entropies of attention maps, and what is frozen of them."""
