"""Search: candidates, short trainings, successive halving; the winner is trained in full beside the baselines."""
