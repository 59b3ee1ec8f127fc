"""How important channels are: the criteria of the literature, and the oracle."""
