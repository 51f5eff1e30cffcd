"""Search: candidates, short trainings, successive halving; the winner is trained in full beside the baselines."""

from panning.search.config import SearchConfig
from panning.search.executor import Executor, SerialExecutor
from panning.search.jobs import Job, Outcome, execute
from panning.search.run import SearchResult, run_search

__all__ = ["Executor", "Job", "Outcome", "SearchConfig", "SearchResult", "SerialExecutor", "execute", "run_search"]
