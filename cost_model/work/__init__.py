"""What a program does: operations, bytes, encodings."""
