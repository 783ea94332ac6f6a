"""Sends alerts and changes of the breaker to a URL, by POST."""

from __future__ import annotations

import hashlib
import hmac
from collections import deque
from typing import Final
from urllib.parse import urlsplit

import anyio
import attrs
import msgspec

from mdservice.observability.logging import get_logger, masked
from mdservice.runtime.network import HttpClient, HttpFailed

__all__ = ["Webhook"]

_log = get_logger(__name__)

_MOST_WAITING: Final = 1_000
_MOST_TRIES: Final = 5
_FIRST_WAIT_S: Final = 1.0
"""Between the first two tries; each further wait is twice as long."""
_TIMEOUT_S: Final = 10.0
_SLACK: Final = ("hooks.slack.com", "hooks.slack-gov.com")
_OK, _REDIRECTS, _BROKEN = 200, 300, 500


@attrs.frozen
class _Message:
    content: bytes
    text: str


class Webhook:
    """Sends each message, up to five times while the server fails or cannot be reached.

    Changes of the breaker and what trips do come before alerts, else messages keep their order. A
    message that is refused, or not delivered after the last try, is dropped and counted; and so is
    the oldest one where too many wait, an alert if there is one.

    Args:
        url: Where to send; it may hold a secret, so that no output has it.
        token: The key of the signature, or None for none.
        http: The client; closed with the webhook.

    Attributes:
        sent: The number of messages that were delivered.
        dropped: The number of messages that were not.
    """

    def __init__(self, url: str, token: str | None, http: HttpClient) -> None:
        self._url = url
        self._token = token
        self._http = http
        host = (urlsplit(url).hostname or "").lower().rstrip(".")
        self._is_slack = host in _SLACK
        self._urgent: deque[_Message] = deque()
        self._alerts: deque[_Message] = deque()
        self._added = anyio.Event()
        self.sent = 0
        self.dropped = 0
        http.hide(url)
        http.prepare(url)

    @property
    def waiting(self) -> int:
        """The number of messages in the queue."""
        return len(self._urgent) + len(self._alerts)

    def send(self, content: bytes, text: str, *, urgent: bool = True) -> None:
        """Queue a message.

        Args:
            content: The JSON.
            text: The same for people; sent to Slack.
            urgent: Whether it comes before those that are not.
        """
        if self.waiting == _MOST_WAITING:
            (self._alerts or self._urgent).popleft()
            self._drop("too many messages wait")
        (self._urgent if urgent else self._alerts).append(_Message(content, text))
        self._added.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            while not self.waiting:
                self._added = anyio.Event()
                await self._added.wait()
            message = (self._urgent or self._alerts).popleft()
            settled = False
            try:
                reason = await self._deliver(message)
                settled = True
            finally:
                if not settled:
                    self._drop("the gateway ends")
            if reason is None:
                self.sent += 1
            else:
                self._drop(reason)

    async def aclose(self) -> None:
        """Close all connections, and count what waits as dropped."""
        for queue in (self._urgent, self._alerts):
            while queue:
                queue.popleft()
                self._drop("the gateway ends")
        await self._http.aclose()

    def _drop(self, reason: str) -> None:
        self.dropped += 1
        _log.error("webhook_message_dropped", reason=reason, dropped=self.dropped)

    async def _deliver(self, message: _Message) -> str | None:
        """Send one message; return why it was not delivered, or None."""
        body = message.content
        if self._is_slack:
            body = msgspec.json.encode({"text": _in_slack(message.text)})
        headers = {"Content-Type": "application/json"}
        if self._token is not None:
            digest = hmac.new(self._token.encode(), body, hashlib.sha256).hexdigest()
            headers["X-Mdservice-Signature"] = f"sha256={digest}"
        wait_s = _FIRST_WAIT_S
        for tries in range(1, _MOST_TRIES + 1):
            reason, helps = await self._try(body, headers)
            if reason is None or not helps or tries == _MOST_TRIES:
                break
            _log.warning("webhook_failed", reason=reason, again_in_s=wait_s)
            await anyio.sleep(wait_s)
            wait_s *= 2
        return reason

    async def _try(self, body: bytes, headers: dict[str, str]) -> tuple[str | None, bool]:
        """Why a try failed, or None; and whether another one may help."""
        try:
            status = await self._http.post(self._url, body, headers=headers, timeout_s=_TIMEOUT_S)
        except HttpFailed as exc:
            return masked(str(exc)), exc.kind in {"network", "timeout"}
        if _OK <= status < _REDIRECTS:
            return None, False
        return f"the server answered {status}", status >= _BROKEN


def _in_slack(text: str) -> str:
    """The text with the characters escaped that begin Slack's links.

    Source: Slack, "Formatting text for app surfaces".
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
