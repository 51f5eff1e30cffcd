"""Search: candidates, short trainings, successive halving; the winner is trained in full beside the baselines."""

from panning.jobs.executor import Executor, SerialExecutor
from panning.jobs.work import Job, Outcome, execute
from panning.search.config import SearchConfig
from panning.search.run import SearchResult, run_search

__all__ = ["Executor", "Job", "Outcome", "SearchConfig", "SearchResult", "SerialExecutor", "execute", "run_search"]
