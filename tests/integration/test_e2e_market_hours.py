"""A trading URL that does not tell the market's hours is visible in each place."""

from __future__ import annotations

from typing import Any


def test_a_wrong_trading_url_is_logged_once_and_shown(stage: Any) -> None:
    simulator, valkey = stage.simulator(), stage.valkey()
    wrong = f"{simulator.rest_url}/nothing-here"
    env = {"MDSERVICE_TRADING_URL": wrong, "MDSERVICE_SYMBOLS": "AAPL", "MDSERVICE_MUTE_AFTER": "1"}
    service = stage.service(simulator, valkey, **env).wait_answers()

    def shown() -> bool:
        return any(
            "answers HTTP 404" in reason and "MDSERVICE_TRADING_URL" in reason and wrong in reason
            for reason in service.status()["reasons"]
        )

    stage.eventually(shown, within=20, what=lambda: service.said)
    assert service.status()["state"] == "degraded"
    check = stage.program("check", **stage.account(simulator, valkey, **env))
    assert check.code() != 0
    line = next(line for line in check.stdout.splitlines() if line.startswith("FAIL  clock"))
    assert "404" in line
    assert "MDSERVICE_TRADING_URL" in line
    assert service.end() == 0
    assert service.stderr.count("market_hours_unknown") == 1
