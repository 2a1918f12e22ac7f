"""What work costs on a chip."""
