"""A few generated requests for each route; docs/measure/service_fuzz.py sends thousands, in all phases of Schemathesis."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from served import Served

from panning.service.api.access import Failures
from panning.service.api.app import routes

SCHEMA = schemathesis.openapi.from_dict(routes().openapi())
#: A stream of a job that never runs has no end.
ROUTES = [one.ok() for one in SCHEMA.get_all_operations() if not one.ok().path.endswith("/events")]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("service"), slots=0)
    made.service.access.failures = Failures(clock=itertools.count(0, 100).__next__)
    yield made
    made.close()


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.label)
def test_generated_requests_are_answered_as_described(route: Any, served: Served) -> None:
    token = served.token("admin")
    few = settings(max_examples=3, derandomize=True, deadline=None, database=None,
                   suppress_health_check=list(HealthCheck))  # fmt: skip

    @few
    @given(case=route.as_strategy())
    def ask(case: Any) -> None:
        response = case.call(base_url=f"http://127.0.0.1:{served.port}", headers={"Authorization": f"Bearer {token}"})
        case.validate_response(response, excluded_checks=[schemathesis.checks.positive_data_acceptance])
        assert response.status_code < 500

    ask()
