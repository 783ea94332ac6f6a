"""Exit codes and what is said with them: configuration, refusals at start, usage, health."""

from __future__ import annotations

import subprocess
from typing import Any

import attrs
import pytest

from tests.integration.conftest import patient

KEYS = {"ALPACA_API_KEY": "PKE2E", "ALPACA_SECRET_KEY": "e2e-secret"}
NOWHERE = {
    "MDSERVICE_FEED_URL": "ws://127.0.0.1:9/v2/iex",
    "MDSERVICE_REST_URL": "http://127.0.0.1:9",
    "MDSERVICE_TRADING_URL": "http://127.0.0.1:9",
}


@attrs.frozen
class Case:
    """Arguments, environment and file that are wrong, and what has to be named."""

    named: tuple[str, ...]
    env: dict[str, str] = attrs.field(factory=dict)
    file: str | None = None
    args: tuple[str, ...] = ("run",)
    unsaid: str | None = None


CASES = {
    # A missing key or secret, once anything points at the real world.
    "redis-alone": Case(("ALPACA_API_KEY",), {"MDSERVICE_REDIS_URL": "redis://127.0.0.1:9"}),
    "redis-url-alone": Case(("ALPACA_API_KEY",), {"REDIS_URL": "redis://127.0.0.1:9"}),
    "feed-alone": Case(("ALPACA_API_KEY",), {"MDSERVICE_FEED": "iex"}),
    "feed-flag-alone": Case(("ALPACA_API_KEY",), args=("run", "--feed", "sip")),
    "feed-url-alone": Case(("ALPACA_API_KEY",), {"MDSERVICE_FEED_URL": "ws://127.0.0.1:9/"}),
    "positions-alone": Case(("ALPACA_API_KEY",), {"MDSERVICE_POSITIONS": "alpaca"}),
    "positions-file-alone": Case(("ALPACA_API_KEY",), {"MDSERVICE_POSITIONS": "file:/p.json"}),
    "key-alone": Case(("ALPACA_SECRET_KEY",), {"ALPACA_API_KEY": "PKE2E"}),
    "secret-alone": Case(("ALPACA_API_KEY",), {"ALPACA_SECRET_KEY": "hush"}, unsaid="hush"),
    "apca-key-alone": Case(("ALPACA_SECRET_KEY",), {"APCA_API_KEY_ID": "PKE2E"}),
    "in-the-file": Case(("ALPACA_API_KEY",), file="[mdservice]\nfeed = 'iex'\n"),
    "empty-key": Case(
        ("ALPACA_API_KEY",), {"MDSERVICE_FEED": "iex", "ALPACA_API_KEY": ""}
    ),
    # Bad values in the environment.
    "ttl-word": Case(("price_ttl", "MDSERVICE_PRICE_TTL"), {"MDSERVICE_PRICE_TTL": "soon"}),
    "ttl-zero": Case(("price_ttl", "MDSERVICE_PRICE_TTL"), {"MDSERVICE_PRICE_TTL": "0"}),
    "ttl-negative": Case(("price_ttl", "MDSERVICE_PRICE_TTL"), {"MDSERVICE_PRICE_TTL": "-5"}),
    "backlog-small": Case(("backlog", "MDSERVICE_BACKLOG"), {"MDSERVICE_BACKLOG": "9999"}),
    "backlog-word": Case(("backlog", "MDSERVICE_BACKLOG"), {"MDSERVICE_BACKLOG": "lots"}),
    "driver": Case(("driver", "MDSERVICE_DRIVER"), {"MDSERVICE_DRIVER": "telepathy"}),
    "feed": Case(("feed", "MDSERVICE_FEED"), {"MDSERVICE_FEED": "cnn"}),
    "feed-url": Case(("feed_url", "MDSERVICE_FEED_URL"), {"MDSERVICE_FEED_URL": "http://x/"}),
    "rest-url": Case(("rest_url", "MDSERVICE_REST_URL"), {"MDSERVICE_REST_URL": "ftp://x/"}),
    "redis-url": Case(
        ("redis_url", "MDSERVICE_REDIS_URL"), {"MDSERVICE_REDIS_URL": "mysql://127.0.0.1"}
    ),
    "redis-url-secret": Case(
        ("redis_url", "MDSERVICE_REDIS_URL"),
        {"MDSERVICE_REDIS_URL": "redis://:hunter2@127.0.0.1:port"},
        unsaid="hunter2",
    ),
    "redis-url-other-name": Case(
        ("redis_url", " REDIS_URL"), {"REDIS_URL": "redis://:hunter2@127.0.0.1:x"}, unsaid="hunter2"
    ),
    "symbols": Case(("symbols", "MDSERVICE_SYMBOLS"), {"MDSERVICE_SYMBOLS": "AAPL,B AD!"}),
    "mute-after": Case(("mute_after", "MDSERVICE_MUTE_AFTER"), {"MDSERVICE_MUTE_AFTER": "nan"}),
    "stale-after": Case(("stale_after", "MDSERVICE_STALE_AFTER"), {"MDSERVICE_STALE_AFTER": "-1"}),
    "interval": Case(
        ("positions_interval", "MDSERVICE_POSITIONS_INTERVAL"), {"MDSERVICE_POSITIONS_INTERVAL": "0"}
    ),
    "positions": Case(("positions", "MDSERVICE_POSITIONS"), {"MDSERVICE_POSITIONS": "guess"}),
    "log-format": Case(("log_format", "MDSERVICE_LOG_FORMAT"), {"MDSERVICE_LOG_FORMAT": "xml"}),
    "http": Case(("http", "MDSERVICE_HTTP"), {"MDSERVICE_HTTP": "nohost"}),
    "http-port": Case(("http", "MDSERVICE_HTTP"), {"MDSERVICE_HTTP": "127.0.0.1:99999"}),
    "http-without-token": Case(
        ("MDSERVICE_HTTP", "MDSERVICE_API_TOKEN"), {"MDSERVICE_HTTP": "192.0.2.1:8080"}
    ),
    "unknown-variable": Case(("MDSERVICE_SYMBOL",), {"MDSERVICE_SYMBOL": "AAPL"}),
    # Bad files.
    "file-unknown-name": Case(("symbol", "mdservice.toml"), file="[mdservice]\nsymbol = 'A'\n"),
    "file-bad-value": Case(
        ("price_ttl", "mdservice.toml"), file="[mdservice]\nprice_ttl = 'soon'\n"
    ),
    "file-without-table": Case(("mdservice.toml", "[mdservice]"), file="feed = 'simulator'\n"),
    "file-broken": Case(("mdservice.toml",), file="[mdservice\n"),
    "file-secret-bad": Case(
        ("redis_url", "mdservice.toml"),
        file="[mdservice]\nredis_url = 'redis://:hunter2@h:port'\n",
        unsaid="hunter2",
    ),
    "file-absent": Case(("nowhere.toml",), args=("--config", "nowhere.toml", "run")),
    "file-absent-after": Case(("nowhere.toml",), args=("run", "--config", "nowhere.toml")),
    "file-empty": Case(("mdservice.toml", "[mdservice]"), file=""),
    "other-command": Case(
        ("price_ttl", "MDSERVICE_PRICE_TTL"), {"MDSERVICE_PRICE_TTL": "x"}, args=("status",)
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def ended(module_stage: Any) -> dict[str, Any]:
    """Every case's process; some at a time, since they are many."""
    programs, names = {}, list(CASES)
    for start in range(0, len(names), 4):
        for name in names[start : start + 4]:
            case, folder = CASES[name], module_stage.folder()
            if case.file is not None:
                (folder / "mdservice.toml").write_text(case.file)
            programs[name] = module_stage.program(*case.args, folder=folder, **case.env)
        for name in names[start : start + 4]:
            ended_or_closed(programs[name])
    return programs


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_setting_is_exit_78_and_named_with_where_it_came_from(
    ended: dict[str, Any], name: str
) -> None:
    case, program = CASES[name], ended[name]
    assert program.process.returncode == 78, program.said
    for word in case.named:
        assert word in program.stderr, program.said
    assert "Traceback" not in program.stderr
    if case.unsaid is not None:
        assert case.unsaid not in program.said


REFUSALS = {
    "402": ("auth", 402),
    "409-login": ("auth", 409),
    "409-subscribe": ("subscribe", 409),
    "411": ("auth", 411),
    "http-401": (None, 401),
    "http-403": (None, 403),
}


REFUSED = [(name, "websockets") for name in REFUSALS]
REFUSED += [("402", "alpaca-py"), ("402", "auto"), ("409-subscribe", "alpaca-py")]
REFUSED += [("http-401", "alpaca-py"), ("http-403", "auto")]


@pytest.fixture(scope="module")
def refused(module_stage: Any) -> dict[tuple[str, str], Any]:
    """A service for each refusal and driver, at simulators that refuse for good."""
    programs: dict[tuple[str, str], Any] = {}
    valkey = module_stage.valkey()

    def start(case: tuple[str, str]) -> None:
        name, driver = case
        when, code = REFUSALS[name]
        simulator = module_stage.simulator()
        if when is None:
            simulator.refuse_upgrade(code, times=1000)
        else:
            simulator.refuse_next(code, when=when, times=1000)
        programs[case] = module_stage.service(
            simulator, valkey, MDSERVICE_DRIVER=driver, MDSERVICE_SYMBOLS="AAPL"
        )

    for first in range(0, len(REFUSED), 4):
        some = REFUSED[first : first + 4]
        for case in some:
            start(case)
        for case in some:
            ended_or_closed(programs[case])
    return programs


def ended_or_closed(program: Any) -> None:
    """Wait for its end; one that goes on is ended, which its test sees by the code."""
    try:
        program.process.wait(patient(15))
    except subprocess.TimeoutExpired:
        program.close()


@pytest.mark.parametrize(("name", "driver"), REFUSED)
def test_what_alpaca_refuses_for_good_at_start_is_exit_78_with_the_reason(
    refused: Any, name: str, driver: str
) -> None:
    program = refused[name, driver]
    assert program.process.returncode == 78, program.said
    last = program.stderr.strip().splitlines()[-1]
    assert name.removeprefix("http-")[:3] in last, program.said
    assert "Traceback" not in program.stderr
    assert not program.socket.exists()


def test_wrong_credentials_are_refused_by_the_account_itself(stage: Any) -> None:
    simulator, valkey = stage.simulator(key="PKRIGHT", secret="right"), stage.valkey()
    program = stage.service(simulator, valkey, MDSERVICE_SYMBOLS="AAPL")
    assert program.code() == 78, program.said
    assert "ALPACA_API_KEY" in program.stderr
    right = stage.service(
        simulator, valkey, MDSERVICE_SYMBOLS="AAPL", ALPACA_API_KEY="PKRIGHT",
        ALPACA_SECRET_KEY="right",
    ).wait_ready()  # fmt: skip
    assert right.end() == 0


@pytest.mark.parametrize(
    ("driver", "package"), [("alpaca-py", "alpaca"), ("websockets", "websockets")]
)
def test_a_named_driver_that_cannot_be_imported_is_exit_78(
    stage: Any, driver: str, package: str
) -> None:
    folder = stage.folder()
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text("raise ImportError('broken on purpose')")
    program = stage.service(
        "ws://127.0.0.1:9/v2/iex", "unix:///nowhere/redis.sock",
        MDSERVICE_DRIVER=driver, MDSERVICE_SYMBOLS="AAPL", PYTHONPATH=str(folder),
    )  # fmt: skip
    assert program.code() == 78, program.said
    assert driver in program.stderr
