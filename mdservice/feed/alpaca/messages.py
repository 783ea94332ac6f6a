"""Alpaca's messages of market data as msgspec structs, with their ``T`` as the tag.

The structs whose names end in ``Fields`` are what a message of the stream and a row of the REST
API have in common. Whatever may be missing may also be null. Times stay encoded
(``msgspec.Raw``): msgspec would turn a msgpack timestamp into a ``datetime``, which has only
microseconds.

Source: Alpaca, "Real-time stock data", "Real-time crypto data", "Real-time option data" and
"Real-time news" (websocket streaming).
"""

from __future__ import annotations

import json
from typing import Annotated

import msgspec

from mdservice.model.trade import TradeId

__all__ = [
    "ArticleFields",
    "ArticleMessage",
    "BarFields",
    "BarMessage",
    "BookFields",
    "BookMessage",
    "CancelMessage",
    "Conditions",
    "CorrectionMessage",
    "DailyBarMessage",
    "ErrorMessage",
    "ImbalanceMessage",
    "LimitBandMessage",
    "Message",
    "Price",
    "QuoteMessage",
    "Size",
    "StatusMessage",
    "Subscription",
    "Success",
    "TradeFields",
    "TradeMessage",
    "UpdatedBarMessage",
    "without_lone_surrogates",
]

Price = Annotated[float, msgspec.Meta(ge=0, lt=1e15)]
Size = Annotated[int, msgspec.Meta(ge=0)] | Annotated[float, msgspec.Meta(ge=0, lt=1e18)]
Symbol = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Conditions = tuple[str, ...] | str | None
"""An option's trade has a single condition, not an array."""


class QuoteMessage(msgspec.Struct, tag_field="T", tag="q", gc=False):
    """``{"T":"q","S":"AAPL","bx":"V","bp":187.12,"bs":2,"ax":"V","ap":187.15,"as":3,
    "c":["R"],"z":"C","t":"2026-11-20T15:51:44.208912345Z"}``

    A price of 0 means that the side has no active quote; sizes are shares, coins or contracts.
    """

    S: Symbol
    bp: Price
    bs: Size
    ap: Price
    t: msgspec.Raw
    ask_size: Size = msgspec.field(name="as")


class _Timed(msgspec.Struct, tag_field="T", gc=False):
    """A message about one symbol."""

    S: Symbol
    t: msgspec.Raw


class TradeFields(msgspec.Struct, gc=False):
    """``{"i":96921,"x":"D","p":126.55,"s":1,"c":["@"],"z":"C"}``; of crypto
    ``{"i":3447222699,"p":66102.5,"s":0.0012,"tks":"B"}``; of options
    ``{"p":4.15,"s":2,"x":"C","c":"S"}``
    """

    p: Price
    s: Size
    i: TradeId | None = None
    x: str | None = None
    c: Conditions = None
    z: str | None = None
    tks: str | None = None


class TradeMessage(TradeFields, tag_field="T", tag="t", kw_only=True, gc=False):
    """``{"T":"t","S":"AAPL","t":"…"}`` and a trade's fields."""

    S: Symbol
    t: msgspec.Raw


class BarFields(msgspec.Struct, gc=False):
    """``{"o":388.9,"h":389.0,"l":388.9,"c":388.9,"v":49378,"n":461,"vw":389.06}``"""

    o: Price
    h: Price
    l: Price  # noqa: E741 - Alpaca's name
    c: Price
    v: Size
    n: Annotated[int, msgspec.Meta(ge=0)] | None = None
    vw: Price | None = None


class _TimedBar(BarFields, tag_field="T", kw_only=True, gc=False):
    S: Symbol
    t: msgspec.Raw


class BarMessage(_TimedBar, tag="b", gc=False):
    """``{"T":"b","S":"SPY","t":"…"}``, the start of the minute, and a bar's fields."""


class UpdatedBarMessage(_TimedBar, tag="u", gc=False):
    """The same with ``"T":"u"``: a bar that late trades have changed."""


class DailyBarMessage(_TimedBar, tag="d", gc=False):
    """The same with ``"T":"d"``: the day up to now."""


class StatusMessage(_Timed, tag="s", gc=False):
    """``{"T":"s","S":"AAPL","sc":"H","sm":"Trading Halt","rc":"T12","rm":"…","t":"…","z":"C"}``"""

    sc: str | None = None
    sm: str | None = None
    rc: str | None = None
    rm: str | None = None
    z: str | None = None


class LimitBandMessage(_Timed, tag="l", gc=False):
    """``{"T":"l","S":"IONM","u":3.24,"d":2.65,"i":"B","t":"…","z":"C"}``"""

    u: Price | None = None
    d: Price | None = None
    i: str | None = None
    z: str | None = None


class CorrectionMessage(_Timed, tag="c", gc=False):
    """``{"T":"c","S":"EEM","x":"M","oi":52983525,"op":39.1,"os":440,"oc":[" ","7"],
    "ci":52983581,"cp":39.2,"cs":440,"cc":[" ","7"],"t":"…","z":"B"}``
    """

    x: str | None = None
    oi: TradeId | None = None
    op: Price | None = None
    os: Size | None = None
    oc: Conditions = None
    ci: TradeId | None = None
    cp: Price | None = None
    cs: Size | None = None
    cc: Conditions = None
    z: str | None = None


class CancelMessage(_Timed, tag="x", gc=False):
    """``{"T":"x","S":"GOOGL","i":465,"x":"D","p":105.31,"s":300,"a":"C","z":"C","t":"…"}``"""

    i: TradeId | None = None
    x: str | None = None
    p: Price | None = None
    s: Size | None = None
    a: str | None = None
    z: str | None = None


class ImbalanceMessage(_Timed, tag="i", gc=False):
    """``{"T":"i","S":"INAQ.U","p":9.12,"z":"C","t":"…"}``"""

    p: Price | None = None
    z: str | None = None


class _Level(msgspec.Struct, gc=False):
    p: Price
    s: Size


class BookFields(msgspec.Struct, gc=False):
    """``{"b":[{"p":66102.5,"s":0.25}],"a":[{"p":66108.1,"s":0}]}``"""

    b: list[_Level] | None = None
    a: list[_Level] | None = None


class BookMessage(BookFields, tag_field="T", tag="o", kw_only=True, gc=False):
    """``{"T":"o","S":"BTC/USD","t":"…","r":true}`` and levels; without ``r`` a change."""

    S: Symbol
    t: msgspec.Raw
    r: bool | None = None


class ArticleFields(msgspec.Struct, gc=False):
    """``{"id":24843171,"headline":"…","summary":"…","author":"…","content":"…","url":"…",
    "symbols":["AAPL"],"source":"benzinga","created_at":"…","updated_at":"…"}``
    """

    id: int
    headline: str | None = None
    summary: str | None = None
    author: str | None = None
    content: str | None = None
    url: str | None = None
    source: str | None = None
    symbols: list[str] | None = None
    created_at: msgspec.Raw = msgspec.Raw()
    updated_at: msgspec.Raw = msgspec.Raw()


class ArticleMessage(ArticleFields, tag_field="T", tag="n", gc=False):
    """The same with ``"T":"n"``."""


class Success(msgspec.Struct, tag_field="T", tag="success"):
    """``{"T":"success","msg":"authenticated"}``; also ``connected``."""

    msg: str


class ErrorMessage(msgspec.Struct, tag_field="T", tag="error"):
    """``{"T":"error","code":406,"msg":"connection limit exceeded"}``"""

    code: int
    msg: str = ""


class Subscription(msgspec.Struct, tag_field="T", tag="subscription"):
    """``{"T":"subscription","trades":[],"quotes":["AAPL"],"bars":[]}``: the whole state.

    Requests name the channels in the same order. ``corrections`` and ``cancelErrors`` are not
    read, since they come with ``trades``.
    """

    trades: list[str] | None = None
    quotes: list[str] | None = None
    bars: list[str] | None = None
    updatedBars: list[str] | None = None  # noqa: N815 - Alpaca's name
    dailyBars: list[str] | None = None  # noqa: N815
    statuses: list[str] | None = None
    lulds: list[str] | None = None
    imbalances: list[str] | None = None
    orderbooks: list[str] | None = None
    news: list[str] | None = None


Message = (
    QuoteMessage
    | TradeMessage
    | BarMessage
    | DailyBarMessage
    | UpdatedBarMessage
    | StatusMessage
    | LimitBandMessage
    | CorrectionMessage
    | CancelMessage
    | ImbalanceMessage
    | BookMessage
    | ArticleMessage
    | Success
    | ErrorMessage
    | Subscription
)


def without_lone_surrogates(text: bytes | str) -> bytes:
    """JSON that a strict decoder refuses, with ``?`` for each invalid character.

    So half a surrogate pair in a symbol costs that message only, not the whole frame.

    Raises:
        ValueError: The text is not JSON for another reason.
    """
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return json.dumps(json.loads(text), ensure_ascii=False).encode(errors="replace")
