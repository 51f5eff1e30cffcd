"""PHEW: paths drawn at random, weighed by the magnitudes along them."""
