"""Replay a recorded journal through the service, and check what came of it.

python recorded_day.py JOURNAL
"""

import sys
from pathlib import Path

import anyio

import mdservice
from mdservice.journal.replay import MAX_SPEED, open_journal, open_replay
from mdservice.testing import MemoryPriceStore


async def main(folder: str) -> None:
    journal = open_journal([Path(folder)])
    stocks = journal.topics["stocks"]
    async with open_replay(journal, speed=MAX_SPEED) as replay:
        settings = mdservice.Settings(
            feed="simulator",
            feed_url=replay.url,
            symbols=tuple({topic.symbol for topic in stocks}),
            channels=tuple({topic.channel for topic in stocks}),
            socket=f"{folder}.sock",
            relay="off",
        )
        async with mdservice.open_service(settings, store=MemoryPriceStore()) as service:
            await replay.finished()
            sent = replay.players[0].messages
            while sum(service.status().feed.received.values()) < sent:
                await anyio.sleep(0.01)
        # At the end of the block, the service has routed and written what it received.
        status = service.status()
        for quote in service.prices():
            print(quote.symbol, quote.bid, quote.ask, "seq", quote.seq)
    assert status.counters.decode_errors == 0, status.feed.last_error
    assert not any(actor.restarts for actor in status.actors.values()), status.reasons


anyio.run(main, sys.argv[1], backend="trio")
