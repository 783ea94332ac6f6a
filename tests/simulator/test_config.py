"""What the simulator's settings may be, and what its parts get of them."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from mdservice.simulator import SimulatorConfig


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": -1},
        {"rate": float("nan")},
        {"slice_s": 0},
        {"day_s": 0},
        {"quotes_per_frame": 0},
        {"zero_side_ratio": 2},
        {"zero_side_ratio": -0.1},
        {"exchanges": ()},
        {"zipf": -1},
        {"connection_limit": 0},
        {"symbol_limit": -1},
        {"auth_timeout_s": 0},
        {"send_buffer_bytes": 0},
        {"most_connections": 0},
        {"rest_rate_limit": -1},
        {"rest_page_size": 0},
        {"rest_page_size": 10_001},
        {"trade_every_s": 0},
        {"fill_every_s": 0},
        {"fills_per_order": 0},
        {"sale_fee": "-0.1"},
        {"sale_fee": 2},
        {"coin_fee": 2},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SimulatorConfig(**wrong)


def test_a_position_without_shares_is_refused() -> None:
    with pytest.raises(ValueError):
        SimulatorConfig(positions={"A": (0, 1)})


@pytest.mark.parametrize(
    "least",
    [
        {"rate": 0},
        {"zero_side_ratio": 0},
        {"zero_side_ratio": 1},
        {"connection_limit": 1},
        {"connection_limit": None},
        {"symbol_limit": 0},
        {"symbol_limit": None},
        {"rest_rate_limit": 0},
        {"rest_rate_limit": None},
        {"rest_page_size": 1},
        {"rest_page_size": 10_000},
        {"trade_every_s": None},
        {"fill_every_s": None},
        {"fills_per_order": 1},
        {"sale_fee": 1},
        {"coin_fee": 1},
        {"cash": -5},
        {"history_size": 0},
    ],
)
def test_the_ends_of_each_range_are_allowed(least: dict[str, Any]) -> None:
    config = SimulatorConfig(**least)
    assert {name: getattr(config, name) for name in least} == least


def test_secrets_are_not_shown() -> None:
    shown = repr(SimulatorConfig(key="PK-hidden", secret="SK-hidden"))
    assert "hidden" not in shown


def test_the_rules_are_the_settings_of_the_same_names() -> None:
    config = SimulatorConfig(
        symbol_limit=3,
        invalid_symbols={"BAD"},
        ignored_symbols={"LOST"},
        closing_codes={406},
        history_feeds={"iex"},
        latest_feeds={"sip"},
        rest_page_size=7,
        rest_lag_s=2.5,
        refuse_recent_sip=True,
    )
    rules = config.rules()
    for name in ("symbol_limit", "invalid_symbols", "ignored_symbols", "closing_codes"):
        assert getattr(rules, name) == getattr(config, name)
    rest = attrs.asdict(config.rest_rules(), recurse=False)
    del rest["default_feed"], rest["has_symbol"]  # of the market, not of the settings
    assert rest == {
        "history_feeds": {"iex"},
        "latest_feeds": {"sip"},
        "invalid_symbols": {"BAD"},
        "page_size": 7,
        "lag_s": 2.5,
        "refuse_recent_sip": True,
    }
