"""Images and labels: what users bring."""
