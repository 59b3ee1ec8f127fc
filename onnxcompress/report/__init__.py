"""Stage 7: the report, and the only code that writes results."""
