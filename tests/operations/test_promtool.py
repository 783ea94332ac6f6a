"""The judge of the alerts notices what is wrong."""

from __future__ import annotations

from pathlib import Path

from tests.operations.promtool import SCRAPE_S, Scrapes, judge, needs_promtool

pytestmark = needs_promtool

DOWN = {"MdserviceRedisDown": ({},)}


def scrapes_of(*values: str | None) -> Scrapes:
    """Redis connected or not; None where the service does not answer."""
    scrapes = Scrapes()
    for value in values:
        text = None if value is None else f"# TYPE x gauge\nmdservice_redis_connected {value}\n"
        scrapes.add({"mdservice": text})
    return scrapes


def test_agrees_where_an_alert_fires_and_ends_as_expected(tmp_path: Path) -> None:
    scrapes = scrapes_of(*["1.0"] * 4, *["0.0"] * 8, *["1.0"] * 4)
    at = [4 * SCRAPE_S, 8 * SCRAPE_S, 12 * SCRAPE_S]
    assert judge(scrapes, zip(at, ({}, DOWN, {}), strict=True), tmp_path) == ""


def test_finds_an_alert_that_fires_too_late_or_at_another_target(tmp_path: Path) -> None:
    scrapes = scrapes_of(*["0.0"] * 8)
    assert "MdserviceRedisDown" in judge(scrapes, [(3 * SCRAPE_S, DOWN)], tmp_path)
    other = {"MdserviceRedisDown": ({"job": "mdservice-gateway"},)}
    assert "mdservice-gateway" in judge(scrapes, [(7 * SCRAPE_S, other)], tmp_path)


def test_finds_an_alert_that_nothing_has_named_at_any_time(tmp_path: Path) -> None:
    scrapes = scrapes_of(*["0.0"] * 8, *["1.0"] * 400)
    assert "MdserviceRedisDown" in judge(scrapes, [(400 * SCRAPE_S, {})], tmp_path)
    assert "MdserviceRedisDown" in judge(scrapes, [], tmp_path, every_s=60)


def test_a_service_without_an_answer_has_no_series(tmp_path: Path) -> None:
    scrapes = scrapes_of(*["0.0"] * 8, None, None)
    cases = [(7 * SCRAPE_S, DOWN), (8 * SCRAPE_S, {}), (9 * SCRAPE_S, {})]
    assert judge(scrapes, cases, tmp_path) == ""


def test_scrapes_are_repeated_part_by_part(tmp_path: Path) -> None:
    once = scrapes_of("1.0", "0.0")
    assert judge(once, [], tmp_path) == ""
    again = once.again([range(1), *[range(1, 2)] * 5])
    assert again.count == 6
    assert judge(again, [(5 * SCRAPE_S, DOWN)], tmp_path) == ""
