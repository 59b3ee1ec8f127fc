"""Latency, measured: interleaved rounds with one live session at a time, and a table on disk."""
