"""Streams in memory keep what a byte stream promises."""

from __future__ import annotations

import anyio
import pytest
import trio
import trio.testing

from mdservice.simulator import memory_stream_pair


async def test_bytes_arrive_in_order_and_a_full_stream_makes_the_sender_wait(
    autojump_clock: trio.abc.Clock,
) -> None:
    near, far = memory_stream_pair(capacity_bytes=4)
    with trio.move_on_after(1) as waited:
        await near.send(b"abcdefgh")
    assert waited.cancelled_caught, "four bytes wait, the others have no room"
    assert await far.receive() == b"abcd"
    await far.send(b"xyz")
    assert await near.receive(2) == b"xy"
    assert await near.receive() == b"z"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.send, b"0123456789")
        got = b""
        while len(got) < 10:
            got += await far.receive()
    assert got == b"0123456789"


async def test_each_direction_ends_by_itself() -> None:
    near, far = memory_stream_pair()
    await near.send(b"last")
    await near.send_eof()
    with pytest.raises(anyio.ClosedResourceError):
        await near.send(b"more")
    assert await far.receive() == b"last"
    with pytest.raises(anyio.EndOfStream):
        await far.receive()
    await far.send(b"answer")
    assert await near.receive() == b"answer"


async def test_a_closed_end_is_noticed_on_both() -> None:
    near, far = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_expect_closed, near)
        await trio.testing.wait_all_tasks_blocked()
        await near.aclose()
    with pytest.raises(anyio.EndOfStream):
        await far.receive()
    with pytest.raises(anyio.BrokenResourceError):
        await far.send(b"x")
    with pytest.raises(anyio.ClosedResourceError):
        await near.send(b"x")


async def _expect_closed(stream: anyio.abc.ByteStream) -> None:
    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()


async def test_a_reset_loses_what_was_on_its_way() -> None:
    near, far = memory_stream_pair()
    await near.send(b"lost")
    near.reset()
    for stream in (near, far):
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()
        with pytest.raises(anyio.BrokenResourceError):
            await stream.send(b"x")


async def test_the_other_end_sees_the_close() -> None:
    near, far = memory_stream_pair()
    ended: list[bool] = []

    async def read() -> None:
        with pytest.raises(anyio.EndOfStream):
            await far.receive()
        ended.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        await near.aclose()
        await trio.lowlevel.checkpoint()
        assert ended
    with trio.testing.assert_checkpoints():
        await far.aclose()
