"""Alpaca's data protocol as somebody else would write it: `websockets`, and REST over plain HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import http.server
import json
import threading
import urllib.parse
from collections import defaultdict
from typing import Any

import msgpack
import websockets.asyncio.server as ws
from websockets.exceptions import ConnectionClosed

CHANNELS = {
    "stocks": (
        *("trades", "quotes", "bars", "updatedBars", "dailyBars"),
        *("statuses", "lulds", "imbalances", "corrections", "cancelErrors"),
    ),
    "crypto": ("trades", "quotes", "orderbooks", "bars", "updatedBars", "dailyBars"),
    "options": ("trades", "quotes"),
    "news": ("news",),
}
PATHS = {
    "/v2/iex": "stocks",
    "/v1beta3/crypto/us": "crypto",
    "/v1beta1/indicative": "options",
    "/v1beta1/news": "news",
}
_TIMES = {"t", "created_at", "updated_at"}


def nanoseconds(text: str) -> int:
    whole, _, fraction = text.removesuffix("Z").partition(".")
    base = dt.datetime.fromisoformat(whole + "+00:00")
    return int(base.timestamp()) * 10**9 + int(fraction.ljust(9, "0") or 0)


def _within(t: str, query: dict[str, str]) -> bool:
    at = nanoseconds(t)
    start, end = query.get("start"), query.get("end")
    return not (start and at < nanoseconds(start)) and not (end and at > nanoseconds(end))


class Client:
    """One connection: its feed, its encoding and what it subscribed."""

    def __init__(self, socket: ws.ServerConnection, feed: str) -> None:
        self.socket, self.feed = socket, feed
        content = socket.request.headers.get("Content-Type", "") if socket.request else ""
        self.msgpack = "msgpack" in content
        self.wants: dict[str, set[str]] = {channel: set() for channel in CHANNELS[feed]}
        self.ready = False

    def encode(self, messages: list[dict[str, Any]]) -> str | bytes:
        if not self.msgpack:
            return json.dumps(messages)
        timed = [
            {
                k: msgpack.Timestamp.from_unix_nano(nanoseconds(v)) if k in _TIMES else v
                for k, v in message.items()
            }
            for message in messages
        ]
        return msgpack.packb(timed)

    async def say(self, *messages: dict[str, Any]) -> None:
        await self.socket.send(self.encode(list(messages)))


class OutsideAlpaca:
    """All four streams on one port, REST on another; its own loop, in a thread."""

    def __init__(self, max_pairs: int = 10**9) -> None:
        self.max_pairs = max_pairs
        self.clients: list[Client] = []
        self.requests: list[dict[str, Any]] = []
        self.refusing = False
        self.rest: list[tuple[str, dict[str, str]]] = []
        # history: (feed, "quotes"|"trades"|"bars") → symbol → rows; latest: likewise → row
        self.history: dict[tuple[str, str], dict[str, list[Any]]] = defaultdict(dict)
        self.latest: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
        self.news: list[dict[str, Any]] = []
        # what a client gets right behind the acknowledgement of a symbol
        self.behind: dict[str, list[dict[str, Any]]] = {}
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._started.wait(20)
        outside = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                url = urllib.parse.urlsplit(self.path)
                query = dict(urllib.parse.parse_qsl(url.query))
                outside.rest.append((url.path, query))
                answer = outside.answer(url.path, query)
                body = json.dumps({"message": "not found"} if answer is None else answer).encode()
                self.send_response(404 if answer is None else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self._http_thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self._http_thread.start()

    @property
    def rest_url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def env(self, valkey: Any, **more: str) -> dict[str, str]:
        base = f"ws://127.0.0.1:{self.port}"
        return {
            "ALPACA_API_KEY": "PKOUT",
            "ALPACA_SECRET_KEY": "out-secret",
            "MDSERVICE_FEED_URL": f"{base}/v2/iex",
            "MDSERVICE_CRYPTO_URL": f"{base}/v1beta3/crypto/us",
            "MDSERVICE_OPTIONS_URL": f"{base}/v1beta1/indicative",
            "MDSERVICE_NEWS_URL": f"{base}/v1beta1/news",
            "MDSERVICE_REST_URL": self.rest_url,
            "MDSERVICE_TRADING_URL": self.rest_url,
            "MDSERVICE_REDIS_URL": valkey.url,
            "MDSERVICE_DRIVER": "websockets",
            **more,
        }

    # ---- REST

    def answer(self, path: str, query: dict[str, str]) -> Any:
        parts = path.strip("/").split("/")
        if path == "/v2/clock":
            return {
                "timestamp": "2026-01-05T15:00:00Z",
                "is_open": True,
                "next_open": "2036-01-06T14:30:00Z",
                "next_close": "2036-01-05T21:00:00Z",
            }
        if path == "/v1beta1/news":
            return self._news(query)
        feed, rest, kind = None, parts, parts[-1]
        if parts[:2] == ["v2", "stocks"]:
            feed, rest = "stocks", parts[2:]
        elif parts[:2] == ["v1beta3", "crypto"]:
            feed, rest = "crypto", parts[3:]
        elif parts[:2] == ["v1beta1", "options"]:
            feed, rest = "options", parts[2:]
        symbols = query.get("symbols", "").split(",")
        if "latest" in rest:
            kind = next(p for p in rest if p != "latest")
            found = self.latest[feed or "", kind]
            return {kind: {s: found[s] for s in symbols if s in found}}
        if feed is None or rest != [kind] or (feed, kind) == ("options", "quotes"):
            return None
        rows = self.history[feed, kind]
        rows_of = {s: [r for r in rows.get(s, ()) if _within(r["t"], query)] for s in symbols}
        return {kind: {s: r for s, r in rows_of.items() if r}, "next_page_token": None}

    def _news(self, query: dict[str, str]) -> Any:
        wanted = set(filter(None, query.get("symbols", "").split(",")))
        rows = [n for n in self.news if not wanted or wanted & set(n["symbols"])]
        rows = [n for n in rows if _within(n["updated_at"], query)]
        rows.sort(key=lambda n: n["updated_at"], reverse=query.get("sort", "desc") == "desc")
        return {"news": rows[: int(query.get("limit", 10))], "next_page_token": None}

    # ---- websocket

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with ws.serve(self._talk, "127.0.0.1", 0, max_size=None) as server:
            self.port = server.sockets[0].getsockname()[1]
            self._started.set()
            await self._stop.wait()

    async def _talk(self, socket: ws.ServerConnection) -> None:
        feed = PATHS[socket.request.path]  # type: ignore[union-attr]
        if self.refusing:
            socket.transport.abort()
            return
        client = Client(socket, feed)
        with contextlib.suppress(ConnectionClosed):
            await client.say({"T": "success", "msg": "connected"})
            if feed == "options" and not client.msgpack:
                await client.say({"T": "error", "code": 412, "msg": "option messages are msgpack"})
                return
            headers = socket.request.headers  # type: ignore[union-attr]
            if "APCA-API-KEY-ID" in headers:
                await client.say({"T": "success", "msg": "authenticated"})
                client.ready = True
                self.clients.append(client)
            try:
                async for raw in socket:
                    message = (
                        msgpack.unpackb(raw)
                        if isinstance(raw, bytes) and client.msgpack
                        else json.loads(raw)
                    )
                    await self._hear(client, message)
            finally:
                if client in self.clients:
                    self.clients.remove(client)

    async def _hear(self, client: Client, message: dict[str, Any]) -> None:
        action = message.get("action")
        self.requests.append({"feed": client.feed, **message})
        if action == "auth":
            if client.ready:
                await client.say({"T": "error", "code": 403, "msg": "already authenticated"})
                return
            client.ready = True
            await client.say({"T": "success", "msg": "authenticated"})
            self.clients.append(client)
            return
        asked = {k: v for k, v in message.items() if k != "action"}
        if any(asked[channel] for channel in set(asked) - set(client.wants)):
            await client.say({"T": "error", "code": 410, "msg": "invalid subscribe action"})
            return
        if client.feed == "options" and "*" in asked.get("quotes", ()):
            await client.say({"T": "error", "code": 413, "msg": "star subscription refused"})
            return
        wants = {c: set(s) for c, s in client.wants.items()}
        for channel, symbols in asked.items():
            if channel in wants:
                (
                    wants[channel].update
                    if action == "subscribe"
                    else wants[channel].difference_update
                )(symbols)
        if client.feed == "stocks":
            wants["corrections"] = wants["cancelErrors"] = set(wants["trades"])
        counted = sum(len(s) for c, s in wants.items() if c not in {"corrections", "cancelErrors"})
        if counted > self.max_pairs:
            await client.say({"T": "error", "code": 405, "msg": "symbol limit exceeded"})
            return
        client.wants = wants
        state = {c: sorted(s) for c, s in wants.items()}
        await client.say({"T": "subscription", **state})
        if action == "subscribe":
            asked_for = {symbol for symbols in asked.values() for symbol in symbols}
            if sent := [m for s in asked_for & self.behind.keys() for m in self.behind[s]]:
                await client.say(*sent)
        if "orderbooks" in asked and action == "subscribe":
            for symbol in asked["orderbooks"]:
                if book := self.latest["crypto", "orderbooks"].get(symbol):
                    await client.say(book)

    def wants(self, feed: str, channel: str) -> set[str]:
        return {s for c in list(self.clients) if c.feed == feed for s in c.wants.get(channel, ())}

    def send(self, feed: str, *messages: dict[str, Any]) -> None:
        """One frame to each client of the feed."""

        async def go() -> int:
            told = [c for c in self.clients if c.feed == feed]
            for client in told:
                await client.say(*messages)
            return len(told)

        assert asyncio.run_coroutine_threadsafe(go(), self._loop).result(20), f"no client of {feed}"

    def cut(self, *feeds: str) -> None:
        """Break these connections without a close frame."""

        def go() -> None:
            for client in list(self.clients):
                if client.feed in feeds:
                    client.socket.transport.abort()
                    self.clients.remove(client)

        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (go(), done.set()))
        assert done.wait(20)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)
        self._http.shutdown()
        self._http.server_close()
        self._http_thread.join(5)
