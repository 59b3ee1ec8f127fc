"""Families of derived models: combinations of width modifiers, screened, built and compared."""
