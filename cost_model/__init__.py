"""What a program costs: exact operation counts and bytes, never a measurement."""
