"""Alerts: checks the rules and publishes each crossing on the channel ``pnl.alert``."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

import anyio

from mdservice.clock import Clock
from mdservice.errors import ConfigurationError, MDServiceError
from mdservice.gateway.redis_calls import RedisCalls
from mdservice.gateway.webhook import Webhook
from mdservice.observability.logging import get_logger, masked
from mdservice.pnl.alerts import AlertRules, encode_alert
from mdservice.pnl.engine import PnlEngine
from mdservice.pnl.numbers import short
from mdservice.pnl.rules import parse_rule
from mdservice.redis_io.names import ALERT_CHANNEL
from mdservice.runtime.backoff import Backoff

__all__ = ["Alerting", "make_alerting"]

_log = get_logger(__name__)

_MOST_WAITING: Final = 1_000
"""Alerts that are kept while Redis is down. The log has each of them too."""
_FIRST_S, _LIMIT_S = 0.2, 5.0
_FIRST_PRICES_S: Final = 15.0
"""How long rules of the total wait for the first price of a position."""


class Alerting:
    """Logs each crossing at once, and publishes it in order when Redis accepts it.

    Args:
        rules: The rules.
        redis: Where to publish.
        clock: The time.
        webhook: Gets each crossing too, or None.
    """

    def __init__(
        self,
        rules: AlertRules,
        redis: RedisCalls,
        clock: Clock,
        webhook: Webhook | None = None,
    ) -> None:
        self._webhook = webhook
        self._rules = rules
        self._redis = redis
        self._clock = clock
        self._waiting: deque[bytes] = deque()
        self._added = anyio.Event()
        self._waited_for = 0
        self._waits_until_s = 0.0

    def look(self, engine: PnlEngine) -> None:
        """Check which rules were crossed, after a change or some time."""
        now_ns, complete = self._clock.utc_ns(), self._is_complete(engine)
        for alert in self._rules.check(engine, now_ns, total=complete):
            _log.warning("pnl_alert", rule=alert.rule, symbol=alert.symbol, value=str(alert.value))
            if len(self._waiting) == _MOST_WAITING:
                self._waiting.popleft()
                _log.error("pnl_alert_not_published", reason="Redis takes none")
            message = encode_alert(alert)
            self._waiting.append(message)
            self._added.set()
            if self._webhook is not None:
                text = f"mdservice: {alert.rule}; {alert.symbol} is at {short(alert.value)}"
                self._webhook.send(message, text, urgent=False)

    def _is_complete(self, engine: PnlEngine) -> bool:
        """Whether the total includes every position, or the wait for it is over.

        First prices come one by one. Until all have come, the sum may cross a level that the
        total does not.
        """
        now_s, waiting = self._clock.monotonic(), engine.totals.waiting
        if waiting > self._waited_for or not waiting:
            self._waits_until_s = now_s + _FIRST_PRICES_S
        self._waited_for = waiting
        return not waiting or now_s >= self._waits_until_s

    async def publish(self) -> None:
        """Publish until cancelled; each alert at least once."""
        backoff = Backoff(_FIRST_S, _LIMIT_S)
        while True:
            while not self._waiting:
                self._added = anyio.Event()
                await self._added.wait()
            message = self._waiting[0]
            try:
                await self._redis.publish(ALERT_CHANNEL, [message])
            except MDServiceError as exc:
                _log.warning("pnl_alerts_wait", reason=masked(str(exc)))
                await anyio.sleep(backoff.next_s())
                continue
            backoff.reset()
            # A full queue may have dropped the message meanwhile.
            if self._waiting and self._waiting[0] is message:
                self._waiting.popleft()


def make_alerting(
    rules: Iterable[str], redis: RedisCalls, clock: Clock, webhook: Webhook | None = None
) -> Alerting | None:
    """The alerting for these rules; None without rules.

    Raises:
        ConfigurationError: A rule cannot be understood.
    """
    try:
        parsed = [parse_rule(rule) for rule in rules]
    except ValueError as exc:
        raise ConfigurationError(f"alerts: {exc}") from exc
    return Alerting(AlertRules(parsed), redis, clock, webhook) if parsed else None
