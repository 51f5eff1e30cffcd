"""Search: candidates, short trainings, successive halving; the winner is trained in full beside the baselines."""

from panning.searches.config import SearchConfig
from panning.searches.run import SearchResult, check_search, run_search

__all__ = ["SearchConfig", "SearchResult", "check_search", "run_search"]
