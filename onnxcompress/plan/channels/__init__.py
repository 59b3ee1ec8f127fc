"""Removing channels from a graph, everywhere at once; and zeroing them, which must be the same."""
