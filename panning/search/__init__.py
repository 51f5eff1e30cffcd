"""Search: candidates, short trainings, successive halving; the winner is trained in full beside the baselines."""

from panning.jobs.executor import Executor, SerialExecutor
from panning.jobs.outcome import Outcome
from panning.jobs.work import Job, execute
from panning.search.config import SearchConfig
from panning.search.run import SearchResult, check_search, run_search

__all__ = [
    "Executor", "Job", "Outcome", "SearchConfig", "SearchResult", "SerialExecutor", "check_search", "execute", "run_search",
]  # fmt: skip
