"""The journal of a running service: what its real connections bring, with both drivers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mdservice
from mdservice.errors import JournalInUse
from mdservice.journal.format import EntryType
from mdservice.journal.segments import read, segments_of
from mdservice.simulator import SimulatorConfig, open_simulator
from mdservice.testing import MemoryPriceStore
from tests.integration.outages import run, until

KEY, SECRET = "PKJOURNALJOURNALKEY1", "secret-of-the-journals-test"


def settings_of(folder: Path, url: str, **more: Any) -> mdservice.Settings:
    return mdservice.Settings(
        api_key=KEY,
        secret_key=SECRET,
        feed="simulator",
        feed_url=url,
        symbols=("AAPL",),
        channels=("quotes", "trades"),
        relay="off",
        socket=folder / "s",
        journal=folder / "journal",
        **more,
    )


def events_of(folder: Path) -> list[dict[str, Any]]:
    found = read(segments_of(folder / "journal"))
    return [each.event for each in found if each.type is EntryType.EVENT]


def frames_of(folder: Path) -> list[bytes | str]:
    found = read(segments_of(folder / "journal"))
    return [frame for each in found if each.type is EntryType.FRAMES for frame in each.frames]


@pytest.mark.parametrize("driver", ["alpaca-py", "websockets"])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_every_connection_is_recorded_and_no_login(
    driver: str, backend: str, tmp_path: Path
) -> None:
    async def body() -> None:
        async with open_simulator(SimulatorConfig(rate=0)) as simulator:
            settings = settings_of(tmp_path, simulator.url, driver=driver)
            async with mdservice.open_service(settings, store=MemoryPriceStore()) as service:
                for bid in (187, 188):
                    await until(lambda: "AAPL" in service.channels())
                    errors = service.status().counters.decode_errors
                    simulator.send_messages([{"T": "error", "code": 400, "msg": SECRET}])
                    simulator.send_quotes([{"S": "AAPL", "bp": bid, "ap": bid + 1}])
                    simulator.send_raw(b"\x91 this is broken")
                    await until(lambda: service.status().counters.decode_errors > errors)  # noqa: B023
                    simulator.drop()
                    await until(lambda: not service.status().feed.connected)
                await until(lambda: "AAPL" in service.channels())
                report = service.status().journal
                assert report is not None
                assert report.last_error is None

    run(body, backend)
    events = events_of(tmp_path)
    assert [each["driver"] for each in events if each["event"] == "connecting"] == [driver] * 3
    (first,) = [each for each in events if each["event"] == "subscribe"][:1]
    assert first["topics"] == {"quotes": ["AAPL"], "trades": ["AAPL"]}
    lost = [each["reason"] for each in events if each["event"] == "disconnected"]
    assert len(lost) == 3
    assert all(lost)
    assert b"\x91 this is broken" in frames_of(tmp_path)
    assert {each["encoding"] for each in events if each["event"] == "login"} == {"msgpack"}
    for path in segments_of(tmp_path / "journal"):
        content = path.read_bytes()
        assert KEY.encode() not in content
        assert SECRET.encode() not in content
        assert b"authenticated" not in content


def test_what_a_repair_has_brought_is_recorded(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_simulator(SimulatorConfig(rate=0)) as simulator:
            settings = settings_of(tmp_path, simulator.url, driver="websockets")
            async with mdservice.open_service(settings, store=MemoryPriceStore()) as service:
                await until(lambda: "AAPL" in service.channels())
                simulator.send_quotes([{"S": "AAPL", "bp": 187, "ap": 188}])
                await until(lambda: service.latest("AAPL") is not None)
                simulator.drop()
                simulator.send_quotes([{"S": "AAPL", "bp": 197, "ap": 198}])  # in history alone
                await until(lambda: getattr(service.latest("AAPL"), "bid", 0) == 197)

    run(body, "trio")
    names = [each["event"] for each in events_of(tmp_path)]
    assert "hold" in names
    (brought,) = [
        each
        for each in events_of(tmp_path)
        if each["event"] == "backfill" and each["kind"] == "quotes"
    ]
    assert 197 in [message["bp"] for message in brought["messages"]]


def test_a_second_service_on_the_folder_is_refused(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_simulator(SimulatorConfig(rate=0)) as simulator:
            settings = settings_of(tmp_path, simulator.url, driver="websockets")
            async with mdservice.open_service(settings, store=MemoryPriceStore()):
                with pytest.raises(JournalInUse, match="MDSERVICE_JOURNAL"):
                    async with mdservice.open_service(settings, store=MemoryPriceStore()):
                        pass
                assert len(list((tmp_path / "journal").glob("*.journal"))) <= 1

    run(body, "asyncio")


def reasons(service: mdservice.Service) -> tuple[str, ...]:
    return service.status().reasons


def test_a_full_disk_degrades_the_service_and_delays_no_price(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mdservice.journal import recorder

    def full(_file: Any, _data: Any) -> None:
        raise OSError(28, "No space left on device")

    async def body() -> None:
        async with open_simulator(SimulatorConfig(rate=0)) as simulator:
            settings = settings_of(tmp_path, simulator.url, driver="websockets")
            with monkeypatch.context() as patch:
                patch.setattr(recorder, "_write_all", full)
                async with mdservice.open_service(settings, store=MemoryPriceStore()) as service:
                    await until(lambda: service.readiness().ready)
                    await until(lambda: "No space left on device" in "".join(reasons(service)))
                    assert service.status().state == "degraded"
                    assert service.readiness().ready
                    simulator.send_quotes([{"S": "AAPL", "bp": 187, "ap": 188}])
                    await until(lambda: service.latest("AAPL") is not None)
                    patch.undo()
                    await until(lambda: service.status().state == "running")

    run(body, "trio")
    assert frames_of(tmp_path)
