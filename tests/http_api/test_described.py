"""Every call of the API does what its description says, whatever is sent."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from schemathesis.checks import CHECKS

from mdservice.http_api.server import create_app
from mdservice.model.kinds import KINDS, ORDERBOOKS
from mdservice.testing.fake_service import FakeService
from tests.described import labels, try_operation
from tests.records import make_record

pytestmark = pytest.mark.thorough

EXAMPLES = 15
NO_SYMBOL = "no symbol was given"
"""A description cannot say that the symbol is in the query or in the body."""


def described() -> Any:
    """The API of a service whose streams end, with a record of each kind."""
    service = FakeService()
    for kind in KINDS:
        symbol = "BTC/USD" if kind is ORDERBOOKS else "AAPL"
        service.publish_record(kind, make_record(kind, symbol))
    service.closed = True
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(service))


API = described()


@pytest.mark.parametrize("label", labels(API))
def test_every_call_does_what_its_description_says(label: str) -> None:
    def check(case: Any) -> None:
        answer = case.call()
        without = answer.status_code == 422 and NO_SYMBOL in answer.text
        excluded = CHECKS.get_by_names(["positive_data_acceptance"]) if without else []
        case.validate_response(answer, excluded_checks=excluded)

    try_operation(API, label, check, EXAMPLES)
