"""Rewrites that change nothing but the time a network takes; one module per kind."""
