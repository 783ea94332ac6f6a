"""The outside of a gateway, as somebody else would write it: a broker, and prices in Redis."""

from __future__ import annotations

import functools
import http
import json
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from zoneinfo import ZoneInfo

import httpx
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from tests.integration.machine_clock import MachineClock

PNL = "/api/v1/positions/pnl/realtime"
DAY = "/api/v1/account/pnl/day"
OPEN_CLOCK = {
    "is_open": True,
    "next_open": "2026-11-23T09:30:00-05:00",
    "next_close": "2026-11-20T16:00:00-05:00",
}
NIGHT_CLOCK = {**OPEN_CLOCK, "is_open": False, "next_close": "2026-11-23T16:00:00-05:00"}
_NEW_YORK = ZoneInfo("America/New_York")


def rfc3339(ns: int) -> str:
    second, fraction = divmod(ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


def held(
    symbol: str,
    qty: str,
    avg: str,
    *,
    current: str | None = None,
    lastday: str | None = None,
    asset_class: str = "us_equity",
    **more: Any,
) -> dict[str, Any]:
    """A row of ``/v2/positions``, with what a test needs of it."""
    row = {
        "symbol": symbol,
        "qty": qty,
        "avg_entry_price": avg,
        "side": "short" if qty.startswith("-") else "long",
        "asset_class": asset_class,
        "current_price": current,
        "lastday_price": lastday,
    }
    return {**{name: value for name, value in row.items() if value is not None}, **more}


class Broker:
    """Alpaca's trading host: REST and ``/stream`` on one port, in threads.

    What it answers stands in its attributes, by path: a body, or a status.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "/v2/clock": {"timestamp": "2026-11-20T10:51:44-05:00", **OPEN_CLOCK},
            "/v2/positions": [],
            "/v2/account": {"equity": "100000", "last_equity": "100000", "cash": "100000"},
        }
        self.activities: list[dict[str, Any]] = []
        self.targets: list[str] = []
        """What was asked for, as it stood in the requests."""
        self.logins: list[dict[str, Any]] = []
        self.refuse = False
        self.listeners: list[ServerConnection] = []
        self._executions = 0
        self._server = serve(self._talk, "127.0.0.1", 0, process_request=self._answer)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.socket.getsockname()[1]}"

    def _answer(self, _connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/stream":
            return None
        self.targets.append(request.path)
        url = urlsplit(request.path)
        if url.path == "/v2/account/activities" and url.path not in self.answers:
            said: Any = self._page(dict(parse_qsl(url.query)))
        else:
            said = self.answers.get(request.path, self.answers.get(url.path, 404))
        status = said if isinstance(said, int) else 200
        body = b"{}" if isinstance(said, int) else said
        if status == http.HTTPStatus.NO_CONTENT:
            body = b""
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        headers = Headers({"Content-Type": "application/json", "Connection": "close"})
        headers["Content-Length"] = str(len(body))
        return Response(status, http.HTTPStatus(status).phrase, headers, body)

    def _page(self, query: dict[str, str]) -> list[dict[str, Any]]:
        rows = list(self.activities)
        if "activity_types" in query:
            types = query["activity_types"].split(",")
            rows = [row for row in rows if row["activity_type"] in types]
        if "category" in query:
            trades = query["category"] == "trade_activity"
            rows = [row for row in rows if (row["activity_type"] == "FILL") is trades]
        if "date" in query:
            rows = [row for row in rows if _day(row) == query["date"]]
        if "after" in query:
            rows = [row for row in rows if _moment(row) > _parse(query["after"])]
        if "until" in query:
            rows = [row for row in rows if _moment(row) < _parse(query["until"])]
        if query.get("direction", "desc") == "desc":
            rows.reverse()
        if "page_token" in query:
            ids = [row["id"] for row in rows]
            rows = rows[ids.index(query["page_token"]) + 1 :]
        return rows[: min(100, int(query.get("page_size", 100)))]

    def _talk(self, connection: ServerConnection) -> None:
        try:
            for message in connection:
                said = json.loads(message)
                if said["action"] in {"authenticate", "auth"}:
                    self.logins.append(said)
                    status = "unauthorized" if self.refuse else "authorized"
                    answer = {"status": status, "action": "authenticate"}
                    connection.send(_frame("authorization", answer))
                elif said["action"] == "listen":
                    connection.send(_frame("listening", {"streams": ["trade_updates"]}))
                    self.listeners.append(connection)
        except ConnectionClosed:
            pass
        finally:
            if connection in self.listeners:
                self.listeners.remove(connection)

    def update(
        self, symbol: str, side: str, qty: str, price: str, position_qty: str, at_ns: int
    ) -> bytes:
        """A frame with the fill of an order."""
        self._executions += 1
        order = {"id": f"order-{self._executions}", "symbol": symbol, "side": side, "qty": qty}
        data = {
            "event": "fill",
            "execution_id": f"execution-{self._executions}",
            "order": {**order, "status": "filled", "filled_qty": qty, "filled_avg_price": price},
            "timestamp": rfc3339(at_ns),
            "price": price,
            "qty": qty,
            "position_qty": position_qty,
        }
        return _frame("trade_updates", data)

    def legs_update(self, legs: dict[str, tuple[str, str, str]], at_ns: int) -> bytes:
        """A frame with the fill of a multi-leg order: side, quantity and position of each leg."""
        self._executions += 1
        order_id, price = f"order-{self._executions}", "1.5"
        rows = [
            {
                "order_id": f"{order_id}-{symbol}",
                "symbol": symbol,
                "side": side,
                "price": price,
                "qty": qty,
                "position_qty": position_qty,
            }
            for symbol, (side, qty, position_qty) in legs.items()
        ]
        order = {"id": order_id, "symbol": "", "side": "", "qty": "1", "order_class": "mleg"}
        data = {
            "event": "fill",
            "execution_id": f"execution-{self._executions}",
            "order": {
                **order,
                "legs": [
                    {
                        "id": row["order_id"],
                        "symbol": row["symbol"],
                        "side": row["side"],
                        "qty": row["qty"],
                        "filled_qty": row["qty"],
                        "filled_avg_price": price,
                    }
                    for row in rows
                ],
            },
            "timestamp": rfc3339(at_ns),
            "price": price,
            "qty": "1",
            "position_qtys": {row["symbol"]: row["position_qty"] for row in rows},
            "legs": rows,
        }
        return _frame("trade_updates", data)

    def fill_activity(
        self, symbol: str, side: str, qty: str, price: str, at_ns: int, **more: Any
    ) -> None:
        """Add a fill to the activities."""
        stamp = datetime.fromtimestamp(at_ns // 10**9, UTC).astimezone(_NEW_YORK)
        number = len(self.activities)
        row = {
            "id": f"{stamp:%Y%m%d%H%M%S}{number:03d}::{number:08d}-0000-4000-8000-000000000000",
            "activity_type": "FILL",
            "transaction_time": rfc3339(at_ns),
            "type": "fill",
            "price": price,
            "qty": qty,
            "side": side,
            "symbol": symbol,
            "leaves_qty": "0",
            "cum_qty": qty,
            "order_id": f"order-of-{number}",
        }
        self.activities.append({**row, **more})

    def push(self, *frames: bytes | str) -> None:
        """Send frames to everybody who listens."""
        assert self.listeners, "nobody listens"
        for connection in list(self.listeners):
            for frame in frames:
                connection.send(frame)

    def drop(self) -> None:
        """End the connections of those who listen."""
        ended, self.listeners = self.listeners, []
        for connection in ended:
            connection.close()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self.drop()


def _frame(stream: str, data: dict[str, Any]) -> bytes:
    return json.dumps({"stream": stream, "data": data}).encode()


def _parse(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _moment(row: dict[str, Any]) -> datetime:
    return _parse(row.get("transaction_time") or f"{row['date']}T00:00:00Z")


def _day(row: dict[str, Any]) -> str:
    return row.get("date") or f"{_moment(row).astimezone(_NEW_YORK):%Y-%m-%d}"


class Outside:
    """``mdservice gateway`` as a process, with everything around it made by hand."""

    def __init__(
        self,
        stage: Any,
        valkey: Any,
        *,
        broker: Broker | None = None,
        clock: MachineClock | None = None,
        folder: Path | None = None,
        begins: bool = True,
        **env: str,
    ) -> None:
        self.stage, self.valkey = stage, valkey
        self.broker = broker or Broker()
        stage.defer(self.broker.close)
        self.port = stage.free_port()
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)
        stage.defer(self.http.close)
        self._seq = 0
        self.utc_ns = time.time_ns if clock is None else clock.utc_ns
        self._start = functools.partial(
            stage.program,
            "gateway",
            folder=folder,
            **{
                "ALPACA_API_KEY": "PKE2E",
                "ALPACA_SECRET_KEY": "e2e-secret",
                "MDSERVICE_TRADING_URL": self.broker.url,
                "MDSERVICE_REST_URL": "http://127.0.0.1:9",
                "MDSERVICE_REDIS_URL": valkey.url,
                "MDSERVICE_GATEWAY_POSITIONS": "alpaca",
                "MDSERVICE_GATEWAY_HTTP": f"127.0.0.1:{self.port}",
                "MDSERVICE_POSITIONS_INTERVAL": "0.1",
                **(clock.env if clock else {}),
                **env,
            },
        )
        if begins:
            self.begin()

    def begin(self) -> None:
        """Start the gateway."""
        self.program = self._start()

    def ready(self) -> Outside:
        def look() -> bool:
            assert self.program.process.poll() is None, self.program.said
            try:
                return self.http.get("/api/v1/positions").status_code == 200
            except httpx.TransportError:
                return False

        self.stage.eventually(look, within=30, what=lambda: self.program.said)
        return self

    def get(self, path: str, status: int = 200, **options: Any) -> dict[str, Any]:
        answer = self.http.get(path, **options)
        assert answer.status_code == status, answer.text + self.program.said[-3000:]
        return dict(self.stage.exact(answer.text))

    def pnl(self) -> dict[str, Any]:
        return self.get(PNL)

    def hold(self, *rows: dict[str, Any]) -> None:
        """Change the broker's positions, and wait until the gateway has them."""
        self.broker.answers["/v2/positions"] = list(rows)
        wanted = [row["symbol"] for row in rows]
        self.stage.eventually(
            lambda: [row["symbol"] for row in self.pnl()["positions"]] == wanted,
            what=lambda: f"{wanted} {self.pnl()}",
        )

    def row(self, symbol: str) -> dict[str, Any]:
        return next(row for row in self.pnl()["positions"] if row["symbol"] == symbol)

    def until(self, symbol: str, **fields: Any) -> dict[str, Any]:
        """The symbol's row once it has these values."""

        def look() -> Any:
            row = self.row(symbol)
            return row if all(row[name] == value for name, value in fields.items()) else None

        found: dict[str, Any] = self.stage.eventually(
            look, what=lambda: f"{symbol} {fields}: {self.pnl()}"
        )
        return found

    def quote(
        self,
        symbol: str,
        bid: str,
        ask: str,
        price: str | None,
        *,
        age_s: float = 0,
        publish: bool = True,
    ) -> None:
        """Write what the service writes: the key, then the event."""
        self._write("price", symbol, age_s, publish, price=price, bid=bid, ask=ask)

    def trade(self, symbol: str, price: str, conditions: str = '["@"]', age_s: float = 0) -> None:
        """Likewise for a trade; conditions as JSON."""
        more = {"size": "100", "exchange": '"V"', "conditions": conditions, "tape": '"C"'}
        self._write("trade", symbol, age_s, True, price=price, **more, id="1")

    def _write(
        self, kind: str, symbol: str, age_s: float, publish: bool, **fields: str | None
    ) -> None:
        self._seq += 1
        at = rfc3339(self.utc_ns() - round(age_s * 1e9))
        sizes = {"bid_size": "100", "ask_size": "100"} if kind == "price" else {}
        values = {name: "null" if v is None else v for name, v in {**fields, **sizes}.items()}
        rest = ",".join(f'"{name}":{value}' for name, value in values.items())
        payload = f'{{"symbol":"{symbol}",{rest},"timestamp":"{at}","seq":{self._seq}}}'
        with self.valkey.client() as client:
            client.set(f"{kind}:{symbol}", payload, ex=300)
            if publish:
                client.publish(f"{kind}.updated", payload)
