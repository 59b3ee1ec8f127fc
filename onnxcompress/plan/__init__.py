"""Stage 4: the pass contract, candidates, and the plan that chooses among them."""
