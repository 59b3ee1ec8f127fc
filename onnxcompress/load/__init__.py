"""Stage 1: read a model, check it, and bring it into the canonical form the passes rely on."""
