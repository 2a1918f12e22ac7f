"""The integers at every tap: kept, read, compared, explained."""
