"""What files from outside may be at most, checked before anything is allocated for them; SECURITY.md shows this table."""

EAM_BYTES = {"manifest": 16 << 20, "data": 2 << 30, "provenance": 16 << 20}
"""Of an .eam file: the JSON of its program, its arrays as they are stored, the JSON of its provenance."""
EAM_HEADER_BYTES = 48 << 20
"""Of both JSONs, and the quotation marks that are escaped in them."""
DECODED_BYTES = 2 << 30
"""Of a program's arrays in memory."""
INDEX_BYTES = 64 << 20
"""Of the index behind a trace or a file of statistics."""
TAP_BITS = 2 << 30
"""Of one image at one tap of a trace."""
STATISTICS_BYTES = 1 << 20
"""Of the JSON of a file of statistics."""
TEXT_BYTES = 64 << 20
"""Of lists of names, config.json, manifests and what `eamsim compare` printed."""
YAML_BYTES, YAML_BRACKETS = 1 << 16, 1000
"""Of the description of a chip; the parser takes a time quadratic in open brackets."""
DUMP_BYTES = 2 << 30
"""Of tables, of JSON lines or memory words that a simulator wrote, and of the state that tuning keeps."""
NPZ_BYTES, NPZ_RATIO = 1 << 30, 100
"""Of the arrays of an .npz: so many bytes, or so many times those of the file."""
PIXELS = 89_478_485
"""Of an image before and after it is resized: Pillow's own limit, a quarter of a gigabyte."""
