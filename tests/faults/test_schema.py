"""The shop answers as its OpenAPI document says, to what that document allows and to what it forbids."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from tests.engines import Observer
from tests.examples.serving import serve

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

#: Not among them: that all that fits the schema is accepted. A schema cannot say that text holds no NUL.
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
OPERATIONS = {
    "GET /users/", "POST /users/", "GET /users/{id}", "POST /register/", "POST /orders/", "GET /orders/{id}", "GET /products/",
    "POST /products/",
}  # fmt: skip


@pytest.mark.engines("pg18-asyncpg")
def test_every_answer_has_a_documented_status_type_and_form_and_none_is_a_5xx(
    database_url: str,
    observer: Observer,
    long: bool,  # noqa: FBT001
) -> None:
    statuses: dict[str, set[int]] = {}
    with serve(database_url) as address:
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        for operation in (found.ok() for found in schema.get_all_operations()):
            seen = statuses[operation.label] = set()
            for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
                _ask(operation.as_strategy(generation_mode=mode), seen, 500 if long else 8)
        assert observer.idle_in_transaction() == 0
    assert statuses.keys() == OPERATIONS
    assert {name for name, seen in statuses.items() if 422 not in seen} == {"GET /products/"}
    assert set().union(*statuses.values()) >= {200, 201, 404}


def _ask(cases: Any, seen: set[int], examples: int) -> None:
    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def ask(case: Any) -> None:
        response = case.call()
        seen.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    with suppress(Unsatisfiable):  # an operation without parameters: nothing can be wrong about a request
        ask()
