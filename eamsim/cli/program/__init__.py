"""Commands on an .eam file."""
