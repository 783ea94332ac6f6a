"""Journals as Parquet, read with DuckDB: every field as it was sent."""

import sys

import duckdb
import msgspec
import pytest
from click.testing import CliRunner

from mdservice.cli import cli
from mdservice.errors import ConfigurationError, JournalError
from mdservice.journal.export import CHANNELS, export
from mdservice.journal.replay import open_journal
from mdservice.model.feeds import FEEDS
from tests.journal.test_replay import BEGIN_NS, SECOND_NS, Writer, journal_at, quote, trade

AT = "2027-01-15T08:00:00.123456789Z"
AT_NS = BEGIN_NS + 123_456_789
MESSAGES = {
    "quotes": {
        "T": "q", "S": "AAPL", "bx": "V", "bp": 187.12, "bs": 2, "ax": "Q", "ap": 187.15, "as": 3,
        "c": ["R"], "z": "C", "t": AT,
    },
    "trades": {
        "T": "t", "S": "BTC/USD", "i": 9_007_199_254_740_993, "p": 66102.123456789, "s": 1e-9,
        "tks": "B", "t": AT,
    },
    "corrections": {
        "T": "c", "S": "AAPL", "x": "M", "oi": 1, "op": 39.1, "os": 440, "oc": [" ", "7"],
        "ci": 2, "cp": 39.2, "cs": 441, "cc": ["7"], "z": "B", "t": AT,
    },
    "cancelErrors": {
        "T": "x", "S": "AAPL", "i": 465, "x": "D", "p": 105.31, "s": 300, "a": "C", "z": "C",
        "t": AT,
    },
    "bars": {
        "T": "b", "S": "SPY", "o": 1.1, "h": 2.2, "l": 0.5, "c": 2, "v": 49378, "n": 461,
        "vw": 1.7, "t": AT,
    },
    "updatedBars": {"T": "u", "S": "SPY", "o": 1, "h": 2, "l": 1, "c": 2, "v": 0, "t": AT},
    "dailyBars": {"T": "d", "S": "SPY", "o": 1, "h": 2, "l": 1, "c": 2, "v": 1, "t": AT},
    "statuses": {
        "T": "s", "S": "AAPL", "sc": "H", "sm": "Halt", "rc": "T12", "rm": "why", "z": "C",
        "t": AT,
    },
    "lulds": {"T": "l", "S": "IONM", "u": 3.24, "d": 2.65, "i": "B", "z": "C", "t": AT},
    "imbalances": {"T": "i", "S": "INAQ.U", "p": 9.12, "z": "C", "t": AT},
    "orderbooks": {
        "T": "o", "S": "BTC/USD", "r": True, "b": [{"p": 66102.5, "s": 0.25}],
        "a": [{"p": 66108.1, "s": 0}], "t": AT,
    },
    "news": {
        "T": "n", "id": 24843171, "headline": "h", "summary": "s", "author": "a", "content": "c",
        "url": "u", "symbols": ["AAPL", "TSLA"], "source": "benzinga", "created_at": AT,
        "updated_at": AT,
    },
}  # fmt: skip


def as_msgpack(value):
    """The message as Alpaca sends it in msgpack: times are timestamps."""
    seconds = (AT_NS % SECOND_NS) << 34 | AT_NS // SECOND_NS
    stamp = msgspec.msgpack.Ext(-1, seconds.to_bytes(8, "big"))
    return {key: stamp if one == AT else one for key, one in value.items()}


def rows(path, what="*", where="true"):
    found = duckdb.sql(f"SELECT {what} FROM '{path}' WHERE {where}")
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def exported(tmp_path, **more):
    out = tmp_path / "out.parquet"
    return export(open_journal([tmp_path / "journal"]), out, **more), out


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
@pytest.mark.parametrize("channel", CHANNELS)
def test_every_field_of_every_channel_is_there_as_it_was_sent(tmp_path, channel, encoding):
    sent = MESSAGES[channel]
    feed = "news" if channel == "news" else "crypto"
    with journal_at(tmp_path / "journal", feed=feed, encoding=encoding) as writer:
        writer.second = 5
        writer.frame([sent if encoding == "json" else as_msgpack(sent)])
    done, out = exported(tmp_path, channels=[channel])
    assert (done.rows, done.unreadable) == (1, 0)
    times = "epoch_ns(timestamp) AS at, epoch_ns(received) AS received"
    drop = "EXCLUDE (timestamp, received" + (", created_at)" if channel == "news" else ")")
    (row,) = rows(out, f"* {drop}, {times}")
    assert row.pop("at") == AT_NS
    assert row.pop("received") == BEGIN_NS + 5 * SECOND_NS
    assert (row.pop("feed"), row.pop("source")) == (feed, "stream")
    assert (row.pop("channel"), row.pop("connection")) == (channel, 1)
    assert row.pop("symbol") == sent.get("S")
    times_sent = ("T", "S", "t", "created_at", "updated_at")
    values = [as_row(name, value) for name, value in sent.items() if name not in times_sent]
    assert sorted(map(repr, filter(lambda v: v is not None, row.values()))) == sorted(
        map(repr, values)
    )
    if channel == "news":
        assert rows(out, "epoch_ns(created_at) AS made") == [{"made": AT_NS}]


def as_row(name, value):
    if name in ("i", "oi", "ci", "id") and not isinstance(value, str):
        return str(value)
    if name in ("b", "a") and isinstance(value, list):
        return [{"price": float(level["p"]), "size": float(level["s"])} for level in value]
    return float(value) if isinstance(value, int) and name not in ("n", "r") else value


def test_an_options_single_condition_is_a_list_of_one(tmp_path):
    with journal_at(tmp_path / "journal") as writer:
        writer.frame([{**trade("AAPL261218C00200000", 1), "c": "S"}])
    _, out = exported(tmp_path)
    assert rows(out, "conditions") == [{"conditions": ["S"]}]


def many(tmp_path):
    with journal_at(tmp_path / "journal") as writer:
        for writer.second in range(1, 5):
            second = writer.second
            writer.frame([quote("AAPL", second), trade("AAPL", second), quote("MSFT", second)])


def test_channels_symbols_and_days_are_chosen(tmp_path):
    many(tmp_path)
    _, out = exported(tmp_path, channels=["quotes", "trades"], symbols=["AAPL"])
    counted = "channel, symbol, count(*) AS n"
    found = duckdb.sql(f"SELECT {counted} FROM '{out}' GROUP BY ALL ORDER BY ALL").fetchall()
    assert found == [("quotes", "AAPL", 4), ("trades", "AAPL", 4)]
    journal = open_journal(
        [tmp_path / "journal"], BEGIN_NS + 2 * SECOND_NS, BEGIN_NS + 4 * SECOND_NS
    )
    export(journal, out, channels=["trades"])
    assert rows(out, "price, id", "symbol = 'AAPL'") == [
        {"price": 9.0, "id": "2"},
        {"price": 9.0, "id": "3"},
    ]


def test_an_article_is_chosen_by_any_of_its_symbols(tmp_path):
    with journal_at(tmp_path / "journal", feed="news", topics={"news": ["*"]}) as writer:
        writer.frame([MESSAGES["news"]])
    assert exported(tmp_path, symbols=["TSLA"])[0].rows == 1
    assert exported(tmp_path, symbols=["MSFT"])[0].rows == 0


def test_what_rest_has_brought_is_marked(tmp_path):
    with journal_at(tmp_path / "journal") as writer:
        writer.frame([quote("AAPL", 1)])
        writer.event(
            "backfill", feed="stocks", kind="quotes", until_ns=1, complete=[],
            messages=[quote("AAPL", 2)],
        )  # fmt: skip
    _, out = exported(tmp_path, channels=["quotes"])
    assert rows(out, "bid, source") == [
        {"bid": 1.0, "source": "stream"},
        {"bid": 2.0, "source": "rest"},
    ]


def test_broken_messages_are_counted_and_cost_only_themselves(tmp_path):
    with journal_at(tmp_path / "journal") as writer:
        writer.frame([{**quote("AAPL", 1), "bp": "much"}, quote("AAPL", 2), {"T": "new"}])
        writer.frame("no array")
        writer.frame("[" * 100_000)
        writer.frame([{**quote("AAPL", 3), "t": "later"}])
        writer.frame([{**quote("AAPL", 4), "t": "9999-01-01T00:00:00Z"}])  # beyond 64 bits
        writer.frame([{**MESSAGES["bars"], "n": 2**63}])
    done, out = exported(tmp_path)
    assert (done.rows, done.unreadable) == (1, 6)
    assert rows(out, "bid") == [{"bid": 2.0}]


def test_many_rows_are_written_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("mdservice.journal.export._ROWS", 3)
    many(tmp_path)
    reached = []
    done, out = exported(tmp_path, progress=reached.append)
    assert done.rows == 12
    assert reached == sorted(reached)
    order = duckdb.sql(f"SELECT epoch_ns(received) AS at FROM '{out}'").fetchall()
    assert order == sorted(order)


def test_without_rows_there_is_a_file_with_columns(tmp_path):
    many(tmp_path)
    done, out = exported(tmp_path, channels=["lulds"])
    assert done.rows == 0
    assert "limit_up" in duckdb.sql(f"SELECT * FROM '{out}'").columns


def test_every_channel_of_every_feed_can_be_exported():
    streamed = {channel for feed in FEEDS for channel in feed.channels}
    companions = {kind.channel for feed in FEEDS for kind in feed.kinds if kind.is_companion}
    assert set(CHANNELS) == streamed | companions


def test_an_unknown_channel_is_named(tmp_path):
    many(tmp_path)
    with pytest.raises(ConfigurationError, match="'ticks' is not a channel"):
        exported(tmp_path, channels=["ticks"])


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    many(tmp_path)
    journal = open_journal([tmp_path / "journal"])
    with pytest.raises(
        JournalError, match=r"none/x\.parquet cannot be written: there is no folder"
    ):
        export(journal, tmp_path / "none" / "x.parquet")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(JournalError, match=r"folder\.parquet cannot be written"):
        export(journal, tmp_path / "folder.parquet")


def test_a_file_that_is_named_as_another_format_is_refused(tmp_path):
    many(tmp_path)
    journal = open_journal([tmp_path / "journal"])
    with pytest.raises(ConfigurationError, match=r"not \.csv; name the file day\.parquet"):
        export(journal, tmp_path / "day.csv")


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    many(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = CliRunner().invoke(
        cli, ["export", str(tmp_path / "journal"), "--out", str(tmp_path / "x.parquet")]
    )
    assert result.exit_code == 78
    assert "pip install 'mdservice[export]'" in result.output


def test_the_command_says_how_many_rows(tmp_path):
    many(tmp_path)
    out = tmp_path / "x.parquet"
    result = CliRunner().invoke(
        cli,
        ["export", str(tmp_path / "journal"), "--out", str(out), "--channel", "trades"],
    )
    assert (result.exit_code, result.output) == (0, f"4 rows in {out}\n")


def test_a_compressed_journal_of_several_segments(tmp_path):
    from mdservice.journal.segments import pack, segments_of

    for number in (1, 2):
        writer = Writer(tmp_path / "journal")
        writer.frame([quote("AAPL", number)])
        writer.close(number)
    list(pack(segments_of(tmp_path / "journal")[0]))
    assert exported(tmp_path)[0].rows == 2
