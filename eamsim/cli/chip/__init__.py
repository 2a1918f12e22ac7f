"""Commands about chips."""
