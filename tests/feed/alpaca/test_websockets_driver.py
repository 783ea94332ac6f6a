"""Messages out of frames: all that wait at once, whole, in order, none lost. On virtual time."""

from __future__ import annotations

import inspect
from typing import Any

import anyio
import pytest
import websockets.asyncio.connection
import websockets.trio.connection
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from mdservice.feed.alpaca import websockets_driver as raw
from mdservice.feed.alpaca.websockets_driver import MOST_BYTES_AT_ONCE, FrameQueue


class Bench:
    def __init__(self, most: int = 1_000, most_bytes: int = 1 << 24) -> None:
        self.log: list[str] = []
        self.frame_queue = FrameQueue(
            most, lambda: self.log.append("pause"), lambda: self.log.append("resume"), most_bytes
        )

    def put(self, *messages: bytes | str) -> None:
        for message in messages:
            text = isinstance(message, str)
            data = message.encode() if isinstance(message, str) else message
            self.frame_queue.put(Frame(Opcode.TEXT if text else Opcode.BINARY, data))


async def test_all_that_wait_are_given_out_at_once_in_order(autojump_clock: Any) -> None:
    bench = Bench()
    bench.put(b"1", "2", b"3")
    assert await bench.frame_queue.get_some() == [b"1", "2", b"3"]
    bench.put(b"4", b"5")
    assert await bench.frame_queue.get() == b"4"
    assert await bench.frame_queue.get_some() == [b"5"]


async def test_so_much_at_once_that_the_event_loop_is_not_held_up(autojump_clock: Any) -> None:
    bench = Bench()
    large = bytes(MOST_BYTES_AT_ONCE // 2 + 1)
    bench.put(large, large, large, b"more")
    assert await bench.frame_queue.get_some() == [large, large]
    assert await bench.frame_queue.get_some() == [large, b"more"]


async def test_waits_and_loses_nothing_when_cancelled(autojump_clock: Any) -> None:
    bench = Bench()
    with anyio.move_on_after(1) as limit:
        await bench.frame_queue.get_some()
    assert limit.cancelled_caught
    got: list[Any] = []

    async def take() -> None:
        got.extend(await bench.frame_queue.get_some())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take)
        await anyio.wait_all_tasks_blocked()
        bench.put(b"1")
        tasks.cancel_scope.cancel()  # in the very moment in which it arrived
    got += [] if got else await bench.frame_queue.get_some()
    assert got == [b"1"]


async def test_reading_is_paused_while_too_many_wait(autojump_clock: Any) -> None:
    bench = Bench(most=4)
    bench.put(*[b"x"] * 4)
    assert bench.log == []
    bench.put(b"x", b"x")
    assert bench.log == ["pause"]
    await bench.frame_queue.get_some()
    assert bench.log == ["pause", "resume"]


async def test_reading_is_paused_while_too_many_bytes_wait(autojump_clock: Any) -> None:
    bench = Bench(most_bytes=8)
    bench.put(b"12345678")
    assert bench.log == []
    bench.put("9", b"")
    assert bench.log == ["pause"]
    assert await bench.frame_queue.get() == b"12345678"
    assert bench.log == ["pause", "resume"]
    await bench.frame_queue.get_some()
    bench.put(b"12345678")
    assert bench.log == ["pause", "resume"]
    bench.put(b"9")
    await bench.frame_queue.get_some()
    assert bench.log == ["pause", "resume"] * 2


async def test_what_waits_is_returned_before_the_end_is_reported(autojump_clock: Any) -> None:
    bench = Bench()
    bench.put(b"1")
    bench.frame_queue.close()
    assert await bench.frame_queue.get_some() == [b"1"]
    for call in (bench.frame_queue.get_some, bench.frame_queue.get):
        with pytest.raises(EOFError):
            await call()
    with pytest.raises(EOFError):
        bench.put(b"2")


async def test_the_end_wakes_one_who_waits(autojump_clock: Any) -> None:
    bench = Bench()
    async with anyio.create_task_group() as tasks:

        async def take() -> None:
            with pytest.raises(EOFError):
                await bench.frame_queue.get_some()

        tasks.start_soon(take)
        await anyio.wait_all_tasks_blocked()
        bench.frame_queue.close()


async def test_at_the_end_reading_goes_on_so_that_the_end_is_read(autojump_clock: Any) -> None:
    bench = Bench(most=1)
    bench.put(b"1", b"2")
    bench.frame_queue.close()
    assert bench.log == ["pause", "resume"]


async def test_a_connection_that_is_being_closed_is_read_on_and_keeps_nothing(
    autojump_clock: Any,
) -> None:
    bench = Bench(most=2)
    bench.put(b"1", b"2", b"3")
    bench.frame_queue.discard()
    assert bench.log == ["pause", "resume"]
    bench.put(b"4", b"5", b"6", b"7")
    bench.frame_queue.close()
    with pytest.raises(EOFError):
        await bench.frame_queue.get_some()
    assert bench.log == ["pause", "resume"]


async def test_others_run_between_two_calls_though_messages_wait(autojump_clock: Any) -> None:
    bench = Bench()
    other_ran = anyio.Event()

    async def other() -> None:
        other_ran.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        for message in (b"1", b"2"):
            bench.put(message)
            assert await bench.frame_queue.get_some() == [message]
        assert other_ran.is_set()


async def test_text_that_is_none_is_reported_when_its_turn_comes(autojump_clock: Any) -> None:
    bench = Bench()
    bench.put("good")
    bench.frame_queue.put(Frame(Opcode.TEXT, b"\xff"))
    assert await bench.frame_queue.get_some() == ["good"]
    for call in (bench.frame_queue.get_some, bench.frame_queue.get):
        with pytest.raises(UnicodeDecodeError):
            await call()


def test_fragments_are_put_together() -> None:
    async def main(parts: list[bytes], opcode: Opcode) -> None:
        bench = Bench()
        bench.put(b"before")
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            bench.frame_queue.put(Frame(opcode if number == 0 else Opcode.CONT, part, fin=last))
        bench.put(b"after")
        whole: Any = b"".join(parts)
        whole = whole.decode() if opcode is Opcode.TEXT else whole
        assert await bench.frame_queue.get_some() == [b"before", whole, b"after"]

    @given(st.lists(st.binary(max_size=5), min_size=1, max_size=6))
    def of_bytes(parts: list[bytes]) -> None:
        anyio.run(main, parts, Opcode.BINARY)

    of_bytes()
    # Text may be cut in the middle of a character.
    anyio.run(main, ["ä€".encode()[:1], "ä€".encode()[1:3], "ä€".encode()[3:]], Opcode.TEXT)


@pytest.mark.pins
@pytest.mark.parametrize("library", [websockets.trio.connection, websockets.asyncio.connection])
def test_the_librarys_connection_uses_of_its_queue_what_the_inlet_has(library: Any) -> None:
    source = inspect.getsource(library.Connection)
    used = {part.split("(")[0].split()[0] for part in source.split("self.recv_messages.")[1:]}
    assert used == {"get", "get_iter", "put", "close"}, "get_iter is recv_streaming's"


def test_a_late_pong_never_ends_the_pings() -> None:
    """The library sleeps for the interval less the answer's time, which must not be negative."""
    assert raw._PING_TIMEOUT_S < raw._PING_INTERVAL_S
