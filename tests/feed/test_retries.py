"""When to connect again."""

from __future__ import annotations

import pytest

from mdservice.feed.alpaca.error_codes import http_refusal, refusal
from mdservice.feed.retries import Retries
from mdservice.runtime.backoff import Backoff


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 404, 405, 410, 426])
def test_a_url_without_a_stream_is_asked_slowly_after_a_few_tries(status: int) -> None:
    retries, refused = Retries(Backoff()), http_refusal(status, "wss://feed.example")
    delays = [retries.after_refusal(refused, 0.0).delay_s for _ in range(10)]
    assert all(delay_s < 5 for delay_s in delays[:3])
    assert all(15 <= delay_s <= 30 for delay_s in delays[3:])
    retries.subscribed(0.0)
    assert retries.after_refusal(refused, 0.0).delay_s < 5


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_busy_server_is_asked_by_the_usual_back_off(status: int) -> None:
    retries, refused = Retries(Backoff()), http_refusal(status, "wss://feed.example")
    delays = [retries.after_refusal(refused, 0.0).delay_s for _ in range(20)]
    assert all(delay_s <= min(30, 0.5 * 2**tries) for tries, delay_s in enumerate(delays))


def test_a_slot_that_was_ours_is_asked_for_often_again_though_no_data_came() -> None:
    retries, refused = Retries(Backoff()), refusal(406, "connection limit exceeded")
    delays = [retries.after_refusal(refused, now_s).delay_s for now_s in (0.0, 60.0, 70.0, 90.0)]
    assert delays[-1] >= 15
    retries.subscribed(120.0)
    assert 4 <= retries.after_refusal(refused, 130.0).delay_s <= 6
