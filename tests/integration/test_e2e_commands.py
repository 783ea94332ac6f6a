"""Commands beside and without a service, where settings come from, and who owns a socket."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import redis

USAGE = [
    ("run", "--nonsense"), ("nonsense",), ("subscribe",), ("unsubscribe",), ("health", "extra"),
    ("simulate", "--port", "many"), ("simulate", "--rate", "-1"),
]  # fmt: skip


@pytest.mark.parametrize("args", USAGE, ids=" ".join)
def test_wrong_usage_is_exit_2(stage: Any, args: tuple[str, ...]) -> None:
    program = stage.program(*args)
    assert program.code() == 2, program.said
    assert "Traceback" not in program.stderr


def test_without_a_service_health_is_2_and_the_other_commands_fail(stage: Any) -> None:
    expected = {("health",): 2, ("status",): 1, ("subscribe", "A"): 1, ("unsubscribe", "A"): 1}
    programs = {args: stage.program(*args) for args in expected}
    for args, code in expected.items():
        program = programs[args]
        assert program.code() == code, program.said
        said = (program.stdout + program.stderr).strip()
        assert str(program.socket) in said
        assert len(said.splitlines()) == 1, said


def test_health_is_2_where_a_service_is_stopped_dead(stage: Any) -> None:
    """A socket that accepts, that never answers."""
    folder = stage.folder()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "mdservice.sock"))
        listener.listen()
        program = stage.program("health", folder=folder)
        assert program.code(within=30) == 2, program.said
        assert len((program.stdout + program.stderr).strip().splitlines()) == 1


def test_help_and_version_are_exit_0(stage: Any) -> None:
    for args in (("--help",), ("run", "--help"), ("--version",), ("simulate", "-h")):
        assert stage.program(*args).code() == 0


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text("[mdservice]\n" + text)
    return str(folder / name)


def test_later_sources_of_a_setting_win(stage: Any) -> None:
    """Defaults < file < environment < command line; the first name that is set wins."""
    folder = stage.folder()
    given = write(
        folder, "given.toml", 'symbols = "FILE,TOML"\nprice_ttl = 11\nevent_log = "file"\n'
    )
    write(folder, "mdservice.toml", "price_ttl = 99\n")
    first = stage.program(
        "--config", given, "run", "--price-ttl", "33", folder=folder,
        MDSERVICE_PRICE_TTL="22", MDSERVICE_EVENT_LOG="environment",
    ).wait_ready()  # fmt: skip
    assert set(first.get("/api/v1/market-data/subscriptions")["symbols"]) == {"FILE", "TOML"}
    with redis.Redis.from_url(first.status()["redis"]["url"]) as client:
        stage.eventually(lambda: client.exists("price:FILE"), what="a price")
        stage.eventually(lambda: 22 < client.ttl("price:FILE") <= 33, what="the life of the flag")
        assert client.exists("environment")
        assert not client.exists("file")
    assert first.end() == 0


def test_the_file_of_the_working_directory_and_keys_in_it_are_read(stage: Any) -> None:
    simulator, valkey, folder = stage.simulator(key="K", secret="S"), stage.valkey(), stage.folder()
    write(
        folder,
        "mdservice.toml",
        f'api_key = "K"\nsecret_key = "S"\nfeed_url = "{simulator.url}"\nfeed = "iex"\n'
        f'redis_url = "{valkey.url}"\ndriver = "websockets"\nsymbols = "AAPL"\n'
        'rest_url = "http://127.0.0.1:9"\ntrading_url = "http://127.0.0.1:9"\n',
    )
    service = stage.program("run", folder=folder).wait_ready()
    assert service.status()["feed"]["name"] == "iex"
    status = stage.beside(service, "status", "--config", str(folder / "mdservice.toml"))
    assert status.process.returncode == 0


def test_alpacas_own_names_and_the_common_redis_name_are_understood(stage: Any) -> None:
    simulator, valkey = stage.simulator(key="K", secret="S"), stage.valkey()
    env = stage.account(simulator, valkey, APCA_API_KEY_ID="K", APCA_API_SECRET_KEY="S")
    env["REDIS_URL"] = env.pop("MDSERVICE_REDIS_URL")
    del env["ALPACA_API_KEY"], env["ALPACA_SECRET_KEY"]
    service = stage.program("run", **env).wait_ready()
    assert service.get("/health/ready")["ready"]
    assert service.status()["redis"]["url"] == valkey.url


def test_status_answers_where_the_feed_is_the_default_one(stage: Any) -> None:
    """With keys and no ``MDSERVICE_FEED``."""
    simulator, valkey = stage.simulator(), stage.valkey()
    service = stage.service(simulator, valkey).wait_ready()
    assert service.status()["feed"]["name"] == "iex"
    assert stage.beside(service, "status").process.returncode == 0


def test_the_simulator_is_asked_for_openly_with_a_given_redis(stage: Any) -> None:
    valkey = stage.valkey()
    service = stage.program(
        "run", MDSERVICE_FEED="simulator", MDSERVICE_REDIS_URL=valkey.url
    ).wait_ready()
    with valkey.client() as client:
        stage.eventually(lambda: list(client.scan_iter("price:*")), what="prices")
    assert service.status()["redis"]["url"] == valkey.url


def test_a_second_service_on_the_same_socket_is_refused(stage: Any) -> None:
    first = stage.program("run").wait_ready()
    second = stage.program("run", folder=first.folder)
    assert second.code() in {1, 78}, second.said
    assert str(first.socket) in second.stderr
    assert "Traceback" not in second.stderr
    first.wait_ready()
    first.until(lambda s: s["counters"]["events_published"])


def test_a_stale_socket_file_is_replaced(stage: Any) -> None:
    folder = stage.folder()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(folder / "mdservice.sock"))
    service = stage.program("run", folder=folder).wait_ready()
    assert service.socket.stat().st_mode & 0o777 == 0o600


def test_the_simulator_alone_serves_a_service(stage: Any) -> None:
    valkey = stage.valkey()
    listener = stage.listener(valkey)
    probe = stage.simulator()
    port = probe.port
    probe.close()
    simulate = stage.program("simulate", "--port", str(port), "--seed", "5", "--rate", "500")
    service = stage.service(
        f"ws://127.0.0.1:{port}/v2/iex", valkey, MDSERVICE_SYMBOLS="AAPL,MSFT"
    ).wait_ready()
    stage.eventually(lambda: len(listener.raw) > 100, what="events")
    assert service.end() == 0
    assert simulate.end() == 0, simulate.said


def test_check_says_that_all_is_well(stage: Any) -> None:
    simulator, valkey = stage.simulator(), stage.valkey()
    check = stage.program("check", **stage.account(simulator, valkey))
    assert check.code() == 0, check.said
    assert "feed" in check.stdout.lower()
    assert "redis" in check.stdout.lower()
    with valkey.client() as client:
        assert not list(client.scan_iter("price:*"))


def test_check_says_what_is_wrong_and_fails(stage: Any) -> None:
    simulator, valkey = stage.simulator(key="other"), stage.valkey()
    programs = {
        "refused": stage.program("check", **stage.account(simulator, valkey)),
        "no redis": stage.program(
            "check", **stage.account(stage.simulator(), "redis://127.0.0.1:9")
        ),
    }
    for program in programs.values():
        assert program.code() in {1, 78}, program.said
        assert "Traceback" not in program.said
    assert "ALPACA_API_KEY" in programs["refused"].said
    assert "MDSERVICE_REDIS_URL" in programs["no redis"].said


def test_check_without_settings_is_well(stage: Any) -> None:
    check = stage.program("check")
    assert check.code(within=30) == 0, check.said


def test_check_beside_its_service_does_not_disturb_it(stage: Any) -> None:
    """An account has one connection."""
    simulator, valkey = stage.simulator(), stage.valkey()
    service = stage.service(simulator, valkey, MDSERVICE_SYMBOLS="AAPL").wait_ready()
    env = {k: v for k, v in service.env.items() if k.startswith(("MDSERVICE", "ALPACA"))}
    check = stage.beside(service, "check", **env)
    assert "Traceback" not in check.said
    assert service.ready() == (True, [])
    assert service.status()["feed"]["reconnects"] == 0
