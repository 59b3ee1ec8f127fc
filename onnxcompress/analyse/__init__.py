"""Stage 2: what the network is made of, at which sizes, and at what cost."""
