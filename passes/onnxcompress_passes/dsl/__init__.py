"""The pass `dsl`: kernels and filters that share what they are made of."""
