"""Commands from a float model on."""
