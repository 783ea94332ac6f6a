"""The gateway's Prometheus metrics, read from its tracker at each scrape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mdservice.gateway.tracker import PnlTracker

__all__ = ["TrackerCollector"]


class TrackerCollector(Collector):
    """Turns what a tracker knows into metrics.

    Args:
        tracker: The tracker.
    """

    def __init__(self, tracker: PnlTracker) -> None:
        self._tracker = tracker

    def collect(self) -> Iterator[Metric]:
        """All metrics of one moment."""
        tracker, webhook = self._tracker, self._tracker.webhook
        totals, risk = tracker.totals(), tracker.risk
        for name, text, value in (
            ("gateway_rows_priced", "Positions with a price.", totals.priced),
            ("gateway_rows_unpriced", "Positions without one.", totals.unpriced),
            (
                "gateway_unrealized_pnl_dollars",
                "Unrealised P&L of the positions with a price.",
                totals.unrealized_pnl,
            ),
            (
                "gateway_day_pnl_dollars",
                "P&L since the last close, without fees; NaN while it is not known.",
                _or_nan(totals.day_pnl),
            ),
            (
                "gateway_market_value_dollars",
                "Market value of the positions with a price; that of short positions is negative.",
                totals.market_value,
            ),
            (
                "gateway_exposure_dollars",
                "The sum of the absolute market values of all symbols.",
                totals.exposure,
            ),
            ("breaker_tripped", "1 while the circuit breaker is tripped.", risk.is_tripped),
            ("limits_blind", "Reasons why limits cannot be judged.", len(risk.blind())),
            ("webhook_waiting", "Messages that wait.", webhook.waiting if webhook else 0),
        ):
            yield GaugeMetricFamily(f"mdservice_{name}", text, value=float(value))
        used = GaugeMetricFamily(
            "mdservice_limit_used_ratio",
            "The largest fraction of the limit that is used; above 1 it is crossed. NaN while none "
            "is known.",
            labels=["rule"],
        )
        for rule, fraction in risk.used().items():
            used.add_metric([rule], _or_nan(fraction))
        yield used
        difference = None if tracker.day is None else tracker.day.difference
        yield GaugeMetricFamily(
            "mdservice_equity_difference_dollars",
            "Dollars of the day's change of the equity that neither P&L nor activities explain; "
            "NaN while they are not compared.",
            value=_or_nan(difference),
        )
        sent, dropped = (webhook.sent, webhook.dropped) if webhook else (0, 0)
        for name, text, count in (
            ("limit_crossings", "Crossings of limits, also of a tripped breaker.", risk.crossings),
            ("breaker_trips", "Trips of the breaker by this gateway.", risk.trips),
            ("breaker_resets", "Its resets by this gateway.", risk.resets),
            ("webhook_sent", "Messages that the webhook has taken.", sent),
            ("webhook_dropped", "Messages that it did not get.", dropped),
        ):
            yield CounterMetricFamily(f"mdservice_{name}", text, value=count)


def _or_nan(value: Decimal | None) -> float:
    return math.nan if value is None else float(value)
