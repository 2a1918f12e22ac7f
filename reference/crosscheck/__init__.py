"""The integers against PyTorch, value by value."""
