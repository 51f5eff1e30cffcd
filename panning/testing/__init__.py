"""What must hold for every pruner, dynamic method, sampler, executor and environment, as suites of pytest.

A subclass says in one fixture what is tested, and pytest runs everything that the contract asks:

    class TestMine(PrunerContract):
        @pytest.fixture
        def pruner(self) -> Pruner:
            return Mine()

A fixture with ``params`` runs the suite over a whole table. The package's own tests do so; nothing else imports this room,
for it needs pytest.
"""

import pytest

_SUITES = ("pruner", "dynamic", "executor", "env", "sampler")
pytest.register_assert_rewrite(*(f"panning.testing.{suite}" for suite in _SUITES))  # before they are imported

from panning.testing.dynamic import DynamicContract  # noqa: E402
from panning.testing.env import EnvContract  # noqa: E402
from panning.testing.executor import ExecutorContract  # noqa: E402
from panning.testing.pruner import PrunerContract  # noqa: E402
from panning.testing.sampler import SamplerContract  # noqa: E402

__all__ = ["DynamicContract", "EnvContract", "ExecutorContract", "PrunerContract", "SamplerContract"]
