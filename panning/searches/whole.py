"""Whole runs of configs in folders: input checked before anything starts, workers, the run, and its report for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from panning import agents
from panning.agents import AgentConfig
from panning.agents.report import write_report as write_agent_report
from panning.compare.grid import GridConfig
from panning.compare.run import Share, check_grid, run_grid
from panning.compare.tables import Table
from panning.episode.policy_net import PolicyNet
from panning.foundation.progress import Listener, silent
from panning.foundation.records import RunRecord
from panning.foundation.stopping import ShouldStop, stops_when
from panning.jobs.artefacts import tell_artefacts
from panning.jobs.reuse import OtherRuns
from panning.jobs.store import MAX_FAILED
from panning.jobs.workers import Workers
from panning.searches.config import SearchConfig
from panning.searches.report import write_report
from panning.searches.run import SearchResult, check_search, run_search


@dataclass(frozen=True)
class How:
    """How a run goes on; none of it is part of the result.

    Attributes:
        listen: hears how far the run is.
        formats: of pictures.
        max_failed: the share of trials that may fail by errors, memory, time or lost workers (``JobStore``).
        reuse: folders of other runs of a search or grid, whose evaluations are not paid for again (``OtherRuns``).
        cache: whether an agent's rewards look up what short trainings gave, and keep what they give; ``whole_agent`` alone
            heeds it.
        should_stop: asked after each job, rollout, epoch and round, and each second while Ray computes; once it is true, the
            run ends with StoppedError and goes on when it is called again.
    """

    workers: Workers = Workers()
    listen: Listener = silent
    formats: Sequence[str] = ("png",)
    max_failed: float = MAX_FAILED
    reuse: Sequence[Path] = ()
    cache: bool = True
    should_stop: ShouldStop | None = None


def whole_search(config: SearchConfig, out: Path, how: How = How()) -> tuple[SearchResult, Table]:  # noqa: B008
    """Run a search, or go on with one, in the folder ``out``; its result and its table.

    Raises:
        PanningError: for wrong input, before Ray starts and anything is written; if the folder holds another search.
    """
    ready, others = check_search(config), OtherRuns(how.reuse, out)
    with (
        stops_when(how.should_stop),
        how.workers.executor(config.device, config.job_timeout_s, how.listen) as (executor, start),
    ):
        result = run_search(
            ready, out, executor, agent_workers=how.workers.n, start_ray=start, max_failed=how.max_failed,
            others=others, listen=how.listen,
        )  # fmt: skip
    table = write_report(result, out, how.formats)
    tell_artefacts(out, how.listen)
    return result, table


def whole_agent(config: AgentConfig, out: Path, how: How = How()) -> tuple[PolicyNet, list[RunRecord]]:  # noqa: B008
    """Train an agent, or go on training, in the folder ``out``; its policy and the records of its rollouts.

    Raises:
        PanningError: for wrong input, before Ray starts and anything is written; if the folder holds another agent.
    """
    with stops_when(how.should_stop), how.workers.ray(config.device, how.listen) as start:
        policy = agents.train_agent(
            config, out, n_workers=how.workers.n, start_workers=start, listen=how.listen, cache=how.cache
        )
    records = write_agent_report(config, out, how.formats)
    tell_artefacts(out, how.listen)
    return policy, records


def whole_grid(
    config: GridConfig, folder: Path, out: Path, how: How = How(), share: Share = (0, 1)  # noqa: B008
) -> list[RunRecord]:  # fmt: skip
    """Run a grid, or go on with one, in the folder ``out``; all records there.

    Args:
        folder: of the config, where policy files are looked for.
        share: only a part of the grid.

    Raises:
        PanningError: for wrong input, before Ray starts and anything is written; if the folder holds another grid.
    """
    check_grid(config, folder)
    others = OtherRuns(how.reuse, out)
    with (
        stops_when(how.should_stop),
        how.workers.executor(config.device, config.job_timeout_s, how.listen) as (executor, _),
    ):
        records = run_grid(config, folder, out, executor, how.listen, share, how.max_failed, others)
    tell_artefacts(out, how.listen)
    return records
