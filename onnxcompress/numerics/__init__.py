"""Dense numerics on plain arrays: NumPy, SciPy and tensorly only, no graph and no model."""
