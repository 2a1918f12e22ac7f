"""eamsim: 4-bit Vision Transformers with frozen attention maps, executed in integers."""

__version__ = "0.1.0"
