"""The breaker's form in Redis and over HTTP."""

from __future__ import annotations

from decimal import Decimal

import pytest

from mdservice.pnl.alerts import Alert
from mdservice.pnl.breaker import (
    CLOSED,
    Breaker,
    decode_breaker,
    encode_breaker,
    reset_at,
    tripped_by,
)

T_NS = 1_795_189_904_208_912_345
CROSSING = Alert("A pnl < -5", "A", "pnl", "below", Decimal(-5), Decimal("-5.250"), T_NS)


def test_what_a_tripped_breaker_says() -> None:
    breaker = tripped_by(CROSSING)
    encoded = encode_breaker(breaker)
    assert encoded == (
        b'{"state":"tripped","rule":"A pnl < -5","subject":"A","value":-5.25,'
        b'"at":"2026-11-20T15:51:44.208912345Z"}'
    )
    assert decode_breaker(encoded) == breaker
    assert breaker.tripped


def test_what_a_closed_breaker_says() -> None:
    encoded = encode_breaker(reset_at(T_NS))
    assert encoded == (
        b'{"state":"closed","rule":null,"subject":null,"value":null,'
        b'"at":"2026-11-20T15:51:44.208912345Z"}'
    )
    assert not decode_breaker(encoded).tripped
    assert decode_breaker(None) == CLOSED


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1E+3", b"1000"),
        ("1E-9", b"0.000000001"),
        ("1000.000000000000000000000000000001", b"1000.000000000000000000000000000001"),
    ],
)
def test_a_value_is_exact_and_has_no_exponent(value: str, text: bytes) -> None:
    payload = encode_breaker(Breaker("tripped", value=Decimal(value)))
    assert b'"value":%b,' % text in payload
    assert decode_breaker(payload).value == Decimal(value)


@pytest.mark.parametrize(
    "payload",
    [b"", b"1", b"{}x", b"\xff", b'{"state":"open"}', b'{"value":1e999999}', b'{"value":"NaN"}'],
)
def test_anything_else_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError):
        decode_breaker(payload)
