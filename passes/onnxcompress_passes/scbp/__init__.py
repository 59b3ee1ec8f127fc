"""Structured coarse block pruning: superblocks of layers whose widths shrink together."""
