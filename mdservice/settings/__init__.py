"""Every setting of the service: one flat, frozen class.

A name in the file is the name of the field; its variable is that name in capitals behind
``MDSERVICE_``, but for Alpaca's keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn
from urllib.parse import urlsplit

import attrs

from mdservice.errors import ConfigurationError
from mdservice.model.feeds import CHANNELS, FeedName
from mdservice.observability.masking import MASK, mask_url, secrets_in_url
from mdservice.runtime.runtime_dir import default_socket
from mdservice.settings import parsers as values
from mdservice.settings.feeds import (
    SIMULATOR,
    STREAM_HOST,
    STREAM_PATHS,
    base_url,
    is_alpacas,
    stream_base,
    url_setting,
)
from mdservice.settings.sources import (
    CONFIG_FILE,
    SECTION,
    SettingInfo,
    bad_setting,
    collect,
    describe,
    infos,
    record_sources,
    setting,
)

if TYPE_CHECKING:
    import ssl

__all__ = ["SETTINGS", "SIMULATOR", "Settings", "load_settings"]


DEFAULT_RELAY = "127.0.0.1:8765"
"""Where the relay listens on the simulator."""
DEFAULT_HTTP = "127.0.0.1:8001"
"""Where the API and its page are served over TCP on the embedded simulator."""
_DAY_S = 86_400.0
_WIDEST_SPREAD = 200.0
"""Per cent of the mid: between two prices above 0 there is none that is wider."""
_TEN_YEARS_S = 315_360_000
_MOST_DAYS = 36_500
_MOST_BYTES = 10**17


@record_sources
@attrs.frozen(kw_only=True, field_transformer=describe)
class Settings:
    """All settings, checked; made by :func:`mdservice.load_settings`, or with keywords.

    ``Settings()`` means the simulator, ``Settings(feed="iex")`` needs the keys: :attr:`sources`
    records what was given. Values are checked at once; :meth:`require_runnable` checks whether
    they are enough to run.

    Raises:
        ConfigurationError: A bad value, named with where it came from.
    """

    api_key: str | None = setting(
        None,
        values.parse_secret,
        "Alpaca's API key.",
        environment=("ALPACA_API_KEY", "APCA_API_KEY_ID"),
        secret=True,
        real_world=True,
    )
    secret_key: str | None = setting(
        None,
        values.parse_secret,
        "Alpaca's secret key.",
        environment=("ALPACA_SECRET_KEY", "APCA_API_SECRET_KEY"),
        secret=True,
        real_world=True,
    )
    feed: str = setting(
        "iex",
        values.one_of(*STREAM_PATHS["stocks"], SIMULATOR),
        "The feed of stocks: iex, sip, delayed_sip, boats, overnight, test (Alpaca's 24 h test "
        "stream) or simulator, which simulates crypto, options and news too.",
        metavar="NAME",
        real_world=True,
        shown_default="`iex`; `simulator` if no setting names a key, feed, stream, Redis or "
        "positions",
    )
    crypto_feed: str = setting(
        "us",
        values.one_of(*STREAM_PATHS["crypto"]),
        "The feed of crypto: us, us-1 or eu-1.",
        metavar="NAME",
        real_world=True,
    )
    options_feed: str = setting(
        "indicative",
        values.one_of(*STREAM_PATHS["options"]),
        "The feed of options: indicative or opra.",
        metavar="NAME",
        real_world=True,
    )
    feed_url: str | None = setting(
        None,
        values.feed_url("stocks"),
        "The stream of stocks: a ws:// or wss:// URL of a server that speaks Alpaca's protocol. "
        "Without it, Alpaca's own stream of the feed.",
        metavar="URL",
        address=True,
        real_world=True,
    )
    crypto_url: str | None = setting(
        None,
        values.feed_url("crypto"),
        "The stream of crypto, as for stocks.",
        metavar="URL",
        address=True,
        real_world=True,
    )
    options_url: str | None = setting(
        None,
        values.feed_url("options"),
        "The stream of options, as for stocks.",
        metavar="URL",
        address=True,
        real_world=True,
    )
    news_url: str | None = setting(
        None,
        values.feed_url("news"),
        "The stream of news, as for stocks.",
        metavar="URL",
        address=True,
        real_world=True,
    )
    rest_url: str = setting(
        "https://data.alpaca.markets",
        values.api_base(
            wrong_hosts=("api.alpaca.markets", "paper-api.alpaca.markets"),
            instead="MDSERVICE_TRADING_URL",
        ),
        "Base of the market-data REST API, for repairs and latest values; set it where a stream "
        "URL is set.",
        metavar="URL",
        address=True,
    )
    trading_url: str = setting(
        "https://paper-api.alpaca.markets",
        values.api_base(
            wrong_hosts=("data.alpaca.markets", "stream.data.alpaca.markets"),
            instead="MDSERVICE_REST_URL",
        ),
        "Base of the trading REST API, for positions and the market's clock.",
        metavar="URL",
        address=True,
    )
    trading_stream_url: str | None = setting(
        None,
        values.trading_stream_url,
        "The stream of trade updates, for positions of alpaca: a ws:// or wss:// URL that speaks "
        "Alpaca's protocol; else /stream at the trading URL.",
        metavar="URL",
        address=True,
        real_world=True,
    )
    driver: Literal["auto", "alpaca-py", "websockets"] = setting(
        "auto",
        values.one_of("auto", "alpaca-py", "websockets"),
        "alpaca-py, websockets (the raw protocol), or auto: alpaca-py, and if that fails, "
        "websockets.",
        metavar="NAME",
    )
    symbols: tuple[str, ...] = setting(
        (),
        values.parse_symbol_list,
        "Symbols to follow from the start, with commas between: stocks, crypto pairs (BTC/USD) "
        "and options (AAPL261218C00200000). * is every symbol of the stock feed.",
        metavar="SYM,SYM",
    )
    channels: tuple[str, ...] = setting(
        ("quotes",),
        values.parse_channel_list,
        f"What to follow of each symbol: {', '.join(CHANNELS)}. A channel that an asset class "
        "does not have is skipped for it.",
        metavar="NAME,NAME",
    )
    news: tuple[str, ...] = setting(
        (),
        values.parse_symbol_list,
        "Symbols whose news to follow, with commas between; * is all news. News names pairs "
        "without the slash; BTC/USD and BTCUSD mean the same here.",
        metavar="SYM,SYM",
    )
    positions: str = setting(
        "none",
        values.parse_positions,
        "Positions to follow: none, alpaca, the http(s):// URL of a gateway, or file:PATH.",
        metavar="SOURCE",
        address=True,
        real_world=True,
    )
    positions_interval: float = setting(
        5.0,
        values.real_number(_DAY_S),
        "Time between two requests for positions.",
        metavar="SECONDS",
    )
    gateway_positions: str | None = setting(
        None,
        values.parse_positions,
        "Positions of the gateway, in the same form; without it, those of --positions.",
        metavar="SOURCE",
        address=True,
        real_world=True,
    )
    alerts: tuple[str, ...] = setting(
        (),
        values.parse_alerts,
        "Alert rules of the gateway, with ; between: 'AAPL pnl < -500; total pct < -2; TSLA "
        "stale'. With trip behind a rule, it is a limit too.",
        metavar="RULE;RULE",
    )
    limits: tuple[str, ...] = setting(
        (),
        values.parse_limits,
        "Rules that trip the gateway's circuit breaker, with ; between: 'AAPL qty > 100; * value > "
        "20000; total day_pnl < -2000; total exposure > 100000'.",
        metavar="RULE;RULE",
    )
    on_trip: tuple[Literal["suspend_trade", "cancel_orders"], ...] = setting(
        (),
        values.parse_on_trip,
        "What the gateway does at the trading URL after a trip that it makes: suspend_trade, "
        "cancel_orders, or both with a comma between. A reset does not undo it. Needs the keys.",
        metavar="NAME,NAME",
    )
    alert_webhook: str | None = setting(
        None,
        values.url("http", "https", as_written=True),
        "Where the gateway sends alerts and changes of the breaker, as JSON by POST.",
        metavar="URL",
        secret=True,
    )
    redis_url: str | None = setting(
        None,
        values.parse_redis_url,
        "redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://; without it, an "
        "embedded server. A URL with a password belongs in the environment or the file: all users "
        "see flags.",
        metavar="URL",
        environment=("MDSERVICE_REDIS_URL", "REDIS_URL"),
        address=True,
        real_world=True,
    )
    key_prefix: str = setting(
        "",
        values.parse_key_prefix,
        "Text such as desk1: in front of every key, channel and stream name in Redis. Where not "
        "set, a gateway that asks the service for its Redis takes the service's.",
        metavar="TEXT",
    )
    price_ttl: int = setting(
        300, values.whole_number(1, _TEN_YEARS_S), "Life of a price in Redis.", metavar="SECONDS"
    )
    renew_prices: bool = setting(
        True,
        values.parse_switch,
        "Keep the price of a quiet symbol from expiring while the feed is connected: on or off.",
        metavar="ON|OFF",
    )
    event_log: str | None = setting(
        None,
        values.parse_event_log,
        "A Redis stream that each event is appended to.",
        metavar="NAME",
    )
    mute_after: float = setting(
        30.0,
        values.real_number(_DAY_S),
        "Silence after which the service checks whether the connection is dead.",
        metavar="SECONDS",
    )
    stale_after: float = setting(
        60.0, values.real_number(_DAY_S), "Age at which a price counts as stale.", metavar="SECONDS"
    )
    mark: Literal["mid", "last", "exit"] = setting(
        "mid",
        values.one_of("mid", "last", "exit"),
        "The price that P&L uses: mid of the quote, last (the last trade that updates the "
        "consolidated last price; needs the trades channel), or exit (bid for long, ask for "
        "short).",
        metavar="NAME",
    )
    max_spread: float = setting(
        10.0,
        values.per_cent(_WIDEST_SPREAD),
        "Widest spread of a stock or crypto quote that counts as a price for P&L and alerts, in "
        "per cent of the mid; 0: any.",
        metavar="PERCENT",
    )
    backlog: int = setting(
        100_000,
        values.whole_number(10_000, 100_000_000),
        "Events kept in order for a Redis that is away; at least 10000.",
        metavar="N",
    )
    socket: Path = setting(
        attrs.Factory(default_socket),
        values.parse_socket,
        "The UNIX socket of the HTTP API.",
        metavar="PATH",
        shown_default="`$XDG_RUNTIME_DIR/mdservice.sock`; without that folder one in the "
        "temporary folder",
    )
    http: str | None = setting(
        DEFAULT_HTTP,
        values.parse_address_or_off,
        "Serve the API and its page over TCP too, or off; off loopback this needs an API token.",
        metavar="HOST:PORT",
        shown_default=f"`{DEFAULT_HTTP}` on the simulator, else `off`",
    )
    api_token: str | None = setting(
        None, values.parse_secret, "Bearer token for the API over TCP.", secret=True
    )
    relay: str | None = setting(
        DEFAULT_RELAY,
        values.parse_address_or_off,
        "Share the connection: serve Alpaca's streams to other programs at this address, or off; "
        "off loopback this needs relay keys.",
        metavar="HOST:PORT",
        shown_default=f"`{DEFAULT_RELAY}` on the simulator, else `off`",
    )
    relay_cert: Path | None = setting(
        None,
        values.parse_file,
        "The relay's certificate and its chain, a PEM file: clients then use wss://.",
        metavar="FILE",
    )
    relay_key_file: Path | None = setting(
        None,
        values.parse_file,
        "The private key of the relay's certificate, a PEM file without a passphrase.",
        metavar="FILE",
    )
    relay_keys: Mapping[str, str] = setting(
        attrs.Factory(dict),
        values.parse_key_pairs,
        "The key pairs that relay clients log in with: KEY:SECRET,KEY:SECRET. On loopback any pair "
        "is accepted where not set.",
        secret=True,
        shown_default="not set",
    )
    journal: Path | None = setting(
        None,
        values.parse_folder_or_off,
        "Record every message of the feeds into this folder, which has nothing else, for mdservice "
        "replay and export; or off.",
        metavar="DIR",
    )
    journal_days: int = setting(
        30,
        values.whole_number(0, _MOST_DAYS),
        "Delete recordings that are older; 0: keep them.",
        metavar="DAYS",
    )
    journal_bytes: int = setting(
        100_000_000_000,
        values.whole_number(0, _MOST_BYTES),
        "Delete the oldest recordings beyond this size; 0: keep them.",
        metavar="N",
    )
    group: str | None = setting(
        None,
        values.parse_group,
        "The standby group: of all instances with the same group and Redis one leads, and the "
        "others take over when it ends; or off. Each needs a socket of its own.",
        metavar="NAME",
    )
    log_format: Literal["console", "json"] = setting(
        attrs.Factory(values.default_log_format),
        values.one_of("console", "json"),
        "console or json; console on a terminal where not set.",
        metavar="NAME",
        shown_default="`console` on a terminal, else `json`",
    )
    gateway_http: str = setting(
        "127.0.0.1:8002",
        values.parse_http_address,
        "Where the gateway listens.",
        metavar="HOST:PORT",
    )
    sources: Mapping[str, str] = attrs.field(factory=dict, eq=False, repr=False)
    """Where each value was found, by the setting's name. What is not here has its default."""

    def __attrs_post_init__(self) -> None:
        if self.http_is_default and not self.simulator_embedded:
            object.__setattr__(self, "http", None)
        itself = self._stream_from(self.relay)
        if self.relay_is_default and (itself is not None or not self.simulated):
            object.__setattr__(self, "relay", None)
        elif itself is not None:
            self._refuse("relay", f"is also the address of {itself}: it would feed itself")
        if self.api_token is None:
            self._require_loopback("http", "a token is needed: set MDSERVICE_API_TOKEN")
        if not self.relay_keys:
            self._require_loopback("relay", "key pairs are needed: set MDSERVICE_RELAY_KEYS")
        if self.relay_cert is not None and self.relay_key_file is None:
            self._refuse("relay_cert", "needs its private key: set MDSERVICE_RELAY_KEY_FILE too")
        if self.relay_key_file is not None and self.relay_cert is None:
            self._refuse("relay_key_file", "needs its certificate: set MDSERVICE_RELAY_CERT too")

    def _require_loopback(self, name: str, needed: str) -> None:
        address = getattr(self, name)
        if address is not None:
            host, _port = values.host_and_port(address)
            if not values.is_loopback(host):
                reason = f"{host} can be reached from other machines, so {needed}"
                self._refuse(name, f"{reason}, or serve on 127.0.0.1")

    def _stream_from(self, relay: str | None) -> str | None:
        """The setting of a stream's URL that has the relay's address."""
        if relay is None:
            return None
        host, port = values.host_and_port(relay)
        here = values.is_loopback(host) or host in values.EVERY_HOST
        for name in map(url_setting, STREAM_PATHS):
            parts = urlsplit(getattr(self, name) or "")
            named = parts.hostname or ""
            if parts.port == port and (named == host or (here and values.is_loopback(named))):
                return name
        return None

    def _refuse(self, name: str, reason: str) -> NoReturn:
        raise bad_setting(name, self.sources[name], reason)

    @property
    def simulated(self) -> bool:
        """Whether the feed is a simulator: asked for, or nothing points at the real world."""
        return self.feed == SIMULATOR or not self._real_world()

    @property
    def simulator_embedded(self) -> bool:
        """Whether the service has to start the simulator itself."""
        return self.simulated and self.feed_url is None

    @property
    def feed_name(self) -> str:
        """The feed's name for people and the status: ``simulator`` when it is one."""
        return SIMULATOR if self.simulated else str(self.feed)

    @property
    def chosen_key_prefix(self) -> str | None:
        """The key prefix; None where it was not given, unlike one that was given empty."""
        return self.key_prefix if "key_prefix" in self.sources else None

    @property
    def http_is_default(self) -> bool:
        """Whether the API's TCP address is the simulator's default, which may be in use."""
        return self.http is not None and "http" not in self.sources

    @property
    def relay_is_default(self) -> bool:
        """Whether the relay's address is the simulator's default, which may be in use."""
        return self.relay is not None and "relay" not in self.sources

    @property
    def relay_url(self) -> str | None:
        """The relay's URL without a path: ``ws://127.0.0.1:8765``; None where it is off."""
        if self.relay is None:
            return None
        return f"{'ws' if self.relay_cert is None else 'wss'}://{self.relay}"

    def relay_tls(self) -> ssl.SSLContext | None:
        """The relay's certificate, read from its files; None where it serves plain ``ws://``.

        Raises:
            ConfigurationError: A file cannot be read, or the two are no pair.
        """
        cert, key = self.relay_cert, self.relay_key_file
        if cert is None or key is None:
            return None
        import ssl

        self._require_pem("relay_cert", cert, b"BEGIN CERTIFICATE", "certificate")
        self._require_pem("relay_key_file", key, b"PRIVATE KEY", "private key")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # A client that reads and writes in two threads, as Python's websockets.sync does, reads a
        # ticket while it writes its upgrade: before Python 3.12.8 that breaks its connection.
        context.num_tickets = 0
        try:
            context.load_cert_chain(cert, key, password=_no_passphrase)
        except _EncryptedKey:
            self._refuse("relay_key_file", f"{key} has a passphrase: write it without one")
        except ssl.SSLError as exc:
            if exc.reason == "KEY_VALUES_MISMATCH":
                self._refuse("relay_key_file", f"{key} does not belong to the certificate {cert}")
            self._refuse("relay_cert", f"{cert} and {key} cannot be used: {exc}")
        return context

    def _require_pem(self, name: str, path: Path, mark: bytes, content: str) -> None:
        try:
            found = path.read_bytes()
        except OSError as exc:
            self._refuse(name, f"{path} cannot be read: {exc.strerror}")
        if mark not in found:
            self._refuse(name, f"{path} has no {content} in PEM form")

    def feed_name_of(self, feed: FeedName) -> str:
        """Alpaca's name of what a connection carries: ``iex``, ``us``, ``indicative``, ``news``.

        For stocks it is ``simulator`` if the feed is one.
        """
        names = {"crypto": self.crypto_feed, "options": self.options_feed, "news": "news"}
        return names.get(feed, self.feed_name)

    def stream_url(self, feed: FeedName) -> str | None:
        """The URL of a connection's websocket; None for the embedded simulator before its start.

        Without a URL of its own, a stream is where the stocks' URL is if that is a simulator or
        a host of Alpaca's, such as the sandbox. Otherwise it is at Alpaca's usual host: another
        stock feed is not known to have crypto, options or news.
        """
        own = self._own_url(feed)
        if own is not None or (self.simulated and self.feed_url is None):
            return own
        base = STREAM_HOST
        if self.feed_url is not None and (self.simulated or is_alpacas(self.feed_url)):
            base = stream_base(self.feed_url)
        return base + STREAM_PATHS[feed][self.feed_name_of(feed)]

    def history_known_of(self, feed: FeedName) -> bool:
        """Whether the REST API is known to have the history of what a connection streams."""
        if "rest_url" in self.sources or self._own_url(feed) is None:
            return True
        return feed == "stocks" and self.simulated

    def _own_url(self, feed: FeedName) -> str | None:
        url: str | None = getattr(self, url_setting(feed))
        return url

    def resolved_rest_url(self) -> str:
        """Return the base of the market-data REST API; a simulator has it on its own port."""
        return self._base_url("rest_url")

    def resolved_trading_url(self) -> str:
        """Return the base of the trading REST API; a simulator has it on its own port."""
        return self._base_url("trading_url")

    def resolved_trading_stream_url(self) -> str:
        """Return the URL of the stream of trade updates."""
        if self.trading_stream_url is not None:
            return self.trading_stream_url
        return f"ws{self.resolved_trading_url().removeprefix('http')}/stream"

    def _base_url(self, name: str) -> str:
        if name in self.sources or not self.simulated or self.feed_url is None:
            return str(getattr(self, name))
        return base_url(self.feed_url)

    def require_runnable(self, *, own_feed: bool = False, own_lease: bool = False) -> None:
        """Refuse settings with which the service must not be started.

        Args:
            own_feed: Whether the caller has a feed of its own, which needs no key of Alpaca's.
            own_lease: Whether it has a lease of its own, which needs no Redis.

        Raises:
            ConfigurationError: A key is missing, or the relay's certificate cannot be used; the
                text names the setting.
        """
        self.relay_tls()
        if self.group is not None and self.redis_url is None and not own_lease:
            self._refuse(
                "group", "needs a Redis that all its instances use: set MDSERVICE_REDIS_URL"
            )
        if self.group is not None and "+cluster" in (self.redis_url or "").partition(":")[0]:
            self._refuse(
                "group",
                "needs one Redis server, or sentinels, and no cluster: the lease is in one server",
            )
        wanting = None
        if not self.simulated and not own_feed:
            wanting = ", ".join(self._real_world()) + " set, so the simulator stays off"
        elif self.positions == "alpaca":
            wanting = "positions = alpaca asks Alpaca's trading API"
        if wanting is None:
            return
        for info in SETTINGS[:2]:
            if getattr(self, info.name) is None:
                raise ConfigurationError(
                    f"{info.name} is missing ({wanting}): set {info.environment[0]} (or "
                    f"{info.environment[1]}), or {info.name} under [{SECTION}] in {CONFIG_FILE}; "
                    "for simulated prices set MDSERVICE_FEED=simulator"
                )

    def secret_values(self) -> tuple[str, ...]:
        """Every text that no output may contain: keys, the token, what is secret in URLs."""
        found: list[str] = []
        for info in SETTINGS:
            value = getattr(self, info.name)
            if info.secret and value:
                pairs = value.items() if isinstance(value, Mapping) else ((value,),)
                found.extend(secret for pair in pairs for secret in pair)
            elif info.address and value is not None:
                found.extend(secrets_in_url(value))
        return tuple(dict.fromkeys(found))

    def shown(self) -> dict[str, Any]:
        """All settings as JSON types, without any secret."""
        return {info.name: self._shown(info) for info in SETTINGS}

    def _shown(self, info: SettingInfo) -> object:
        value = getattr(self, info.name)
        if info.secret:
            return MASK if value else None
        if isinstance(value, tuple):
            return list(value)
        return mask_url(str(value)) if isinstance(value, (str, Path)) else value

    def _real_world(self) -> list[str]:
        """The settings that point at the real world, as they were given."""
        return [
            f"{info.name} ({self.sources[info.name]})"
            for info in SETTINGS
            if info.real_world and info.name in self.sources
        ]


class _EncryptedKey(Exception):
    """OpenSSL asks for the passphrase of a private key."""


def _no_passphrase() -> str:
    raise _EncryptedKey


SETTINGS: tuple[SettingInfo, ...] = infos(Settings)
"""The description of every setting, in the order of the fields."""


def load_settings(
    config: Path | None, flags: Mapping[str, str], environ: Mapping[str, str]
) -> Settings:
    """Settings from all of their sources: defaults < ``mdservice.toml`` < environment < flags.

    Args:
        config: The file; None for ``mdservice.toml`` in the working directory, where there is.
        flags: What the command line gives, by the setting's name.
        environ: The environment, usually ``os.environ``.

    Raises:
        ConfigurationError: An unknown name, a file that cannot be read, or a bad value; the
            text names the setting and the variable, file or flag. Values of secrets are not
            quoted.
    """
    given = collect(SETTINGS, config, flags, environ)
    found: dict[str, Any] = {"socket": default_socket(environ)}
    parsers = {info.name: info.parse for info in SETTINGS}
    for name, item in given.items():
        try:
            found[name] = parsers[name](item.value)
        except ValueError as exc:
            raise bad_setting(name, item.source, exc) from None
    sources = {name: item.source for name, item in given.items()}
    return Settings(**found, sources=sources)
