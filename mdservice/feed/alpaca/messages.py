"""Alpaca's websocket messages as msgspec structs, with their ``T`` as the tag.

Only quotes are used today. Of the others only type and symbol are read, to count and skip them.
Times stay encoded (``msgspec.Raw``): msgspec would turn a msgpack timestamp into a ``datetime``,
which has only microseconds.

Source: Alpaca, "Real-time stock data" (websocket streaming).
"""

from __future__ import annotations

import json
from typing import Annotated

import msgspec

__all__ = [
    "Bar",
    "CancelError",
    "Correction",
    "DailyBar",
    "ErrorMessage",
    "Imbalance",
    "LimitBand",
    "Message",
    "QuoteMessage",
    "Subscription",
    "Success",
    "Trade",
    "TradingStatus",
    "UpdatedBar",
    "without_lone_surrogates",
]

Price = Annotated[float, msgspec.Meta(ge=0, lt=1e15)]
Size = Annotated[int, msgspec.Meta(ge=0)] | Annotated[float, msgspec.Meta(ge=0, lt=1e18)]
Symbol = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class QuoteMessage(msgspec.Struct, tag_field="T", tag="q", gc=False):
    """``{"T":"q","S":"AAPL","bx":"V","bp":187.12,"bs":2,"ax":"V","ap":187.15,"as":3,
    "c":["R"],"z":"C","t":"2026-11-20T15:51:44.208912345Z"}``

    A price of 0 means that the side has no active quote; sizes are shares.
    """

    S: Symbol
    bp: Price
    bs: Size
    ap: Price
    t: msgspec.Raw
    ask_size: Size = msgspec.field(name="as")


class _SymbolMessage(msgspec.Struct, tag_field="T", gc=False):
    S: Symbol


class Trade(_SymbolMessage, tag="t"):
    """``{"T":"t","i":96921,"S":"AAPL","x":"D","p":126.55,"s":1,"t":"…","c":["@"],"z":"C"}``"""


class Bar(_SymbolMessage, tag="b"):
    """``{"T":"b","S":"SPY","o":388.9,"h":389.0,"l":388.9,"c":388.9,"v":49378,"t":"…"}``"""


class DailyBar(_SymbolMessage, tag="d"):
    """``{"T":"d","S":"SPY","o":388.9,"h":389.0,"l":388.9,"c":388.9,"v":49378,"t":"…"}``"""


class UpdatedBar(_SymbolMessage, tag="u"):
    """``{"T":"u","S":"SPY","o":388.9,"h":389.0,"l":388.9,"c":388.9,"v":49378,"t":"…"}``"""


class TradingStatus(_SymbolMessage, tag="s"):
    """``{"T":"s","S":"AAPL","sc":"H","sm":"Trading Halt","rc":"T12","t":"…","z":"C"}``"""


class LimitBand(_SymbolMessage, tag="l"):
    """``{"T":"l","S":"IONM","u":3.24,"d":2.65,"i":"B","t":"…","z":"C"}``"""


class Correction(_SymbolMessage, tag="c"):
    """``{"T":"c","S":"EEM","x":"M","oi":52983525,"op":39.1,"ci":52983525,"cp":39.1,"t":"…"}``"""


class CancelError(_SymbolMessage, tag="x"):
    """``{"T":"x","S":"GOOGL","i":465,"x":"D","p":105.31,"s":300,"a":"C","z":"C","t":"…"}``"""


class Imbalance(_SymbolMessage, tag="i"):
    """``{"T":"i","S":"INAQ.U","p":9.12,"z":"C","t":"…"}``"""


class Success(msgspec.Struct, tag_field="T", tag="success"):
    """``{"T":"success","msg":"authenticated"}``; also ``connected``."""

    msg: str


class ErrorMessage(msgspec.Struct, tag_field="T", tag="error"):
    """``{"T":"error","code":406,"msg":"connection limit exceeded"}``"""

    code: int
    msg: str = ""


class Subscription(msgspec.Struct, tag_field="T", tag="subscription"):
    """``{"T":"subscription","trades":[],"quotes":["AAPL"],"bars":[]}``: the whole state."""

    quotes: list[str] | None = None


Message = (
    QuoteMessage
    | Trade
    | Bar
    | DailyBar
    | UpdatedBar
    | TradingStatus
    | LimitBand
    | Correction
    | CancelError
    | Imbalance
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
