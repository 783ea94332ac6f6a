"""The same checks of schemathesis on a gateway that runs, with a real Redis behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from functools import partial
from typing import Any

import anyio.from_thread
import pytest
import schemathesis
from schemathesis.checks import CHECKS

from mdservice.gateway.make import make_tracker
from mdservice.gateway.serve import gateway_app, serve_gateway
from mdservice.model.position import Position
from mdservice.settings import Settings
from mdservice.testing import FakePositions
from tests.described import labels, try_operation

EXAMPLES = 15
HELD = [Position("AAPL", Decimal(10), Decimal(150)), Position("BTCUSD", Decimal("0.5"), Decimal(1))]
ENDLESS = "GET /api/v1/positions/pnl/realtime/stream"
WITHOUT_ACCOUNT = "GET /api/v1/account/pnl/day"
API = schemathesis.openapi.from_dict(
    gateway_app(make_tracker(FakePositions(HELD), Settings())).openapi()
)


@pytest.fixture
def gateway(valkey: Any) -> Iterator[str]:
    """The URL of a gateway that judges limits."""
    tracker = make_tracker(
        FakePositions(HELD),
        Settings(),
        redis_url=valkey.url,
        limits=["AAPL qty > 100", "* value > 100000"],
    )
    serve = partial(serve_gateway, tracker, Settings(gateway_http="127.0.0.1:0"))
    with ExitStack() as stack:
        portal = stack.enter_context(anyio.from_thread.start_blocking_portal("trio"))
        future, address = portal.start_task(serve)
        stack.callback(portal.call, tracker.aclose)
        stack.callback(future.cancel)
        yield f"http://{address}"


@pytest.mark.parametrize("label", [label for label in labels(API) if label != ENDLESS])
def test_every_call_does_what_its_description_says(label: str, gateway: str) -> None:
    def check(case: Any) -> None:
        answer = case.call(base_url=gateway)
        without = label == WITHOUT_ACCOUNT and answer.status_code == 503
        excluded = CHECKS.get_by_names(["not_a_server_error"]) if without else []
        case.validate_response(answer, excluded_checks=excluded)

    try_operation(API, label, check, EXAMPLES)
