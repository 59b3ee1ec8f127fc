"""Stage 5: carry out a plan, with every rewrite checked and rolled back if it breaks its word."""
