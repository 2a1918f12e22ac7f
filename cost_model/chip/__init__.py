"""What a chip has: arrays, lanes, memories, energies."""
