"""The reference of the log: its events as the code logs them, with what each means."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import mdservice
from docs.generate.text import code, table

__all__ = ["log_events"]

_PACKAGE: Final = Path(mdservice.__file__).parent
_LEVELS: Final = {"debug", "info", "warning", "error", "critical"}

_MEANINGS: Final = {
    "account_failed": "The balances or the activities of the account cannot be read. They are read "
    "again later; `GET /api/v1/account/pnl/day` says why.",
    "account_is_back": "The account can be read again.",
    "account_update_unreadable": "A message of `account.updated` cannot be read. The positions are "
    "asked for at once.",
    "account_updates_lost": "The gateway has lost the channel `account.updated`. It connects "
    "again, and asks for the positions.",
    "actor_restarts": "An actor failed and is restarted after a pause. `reason` is its error.",
    "actor_stalled": "An actor showed no sign of life for too long. It is restarted.",
    "announcement": "A line for the person who started the program, in `message`.",
    "another_service_publishes_here": "Another service writes the same keys and channels.",
    "breaker_is_back": "The breaker in Redis can be read and written again.",
    "breaker_not_reached": "The breaker in Redis cannot be read or written. It is tried again. "
    "Trading is not allowed meanwhile.",
    "breaker_reset": "The circuit breaker was closed by a reset.",
    "breaker_tripped": "A limit was crossed, and this gateway has tripped the circuit breaker.",
    "day_start_not_kept": "Redis does not keep what the account held at the start of the day. A "
    "gateway that starts later may not know what was realised.",
    "day_start_not_read": "What Redis kept of the start of the day cannot be read.",
    "embedded_server_died": "The embedded Valkey server ended. A new one is started.",
    "equity_agrees_again": "The change of the equity is that of the day's P&L again.",
    "equity_differs": "The equity changed by `dollars` more than the day's P&L and the activities "
    "explain. Logged once for each difference.",
    "event_log_begins_anew": "A reader found another event log under the name. It reads all of it.",
    "event_log_lost_its_end": "The event log lost its newest entries, as after a server's crash. "
    "The reader reads the keys again.",
    "event_log_was_cut": "The event log was trimmed before a reader had read its entries. It reads "
    "the keys again.",
    "event_loop_was_blocked": "Something kept the event loop busy for `lag_s` seconds.",
    "events_lost_at_the_end": "The service stopped before Redis had `count` events. Of `unknown` "
    "more it is not known whether Redis has them.",
    "feed_connected": "Connected and logged in.",
    "feed_driver_changed": "The other driver is used, since the first one failed.",
    "feed_error_ignored": "The feed sent an error that is the answer to no request. It is ignored.",
    "feed_failed": "A connection, or the attempt to open one, ended. `reason` says why.",
    "feed_is_mute": "The connection is open but brings nothing. It is replaced.",
    "feed_is_quiet": "Nothing has come for `silent_s` seconds, and nothing had to: the market is "
    "quiet or closed.",
    "feed_sends_json": "The feed answers in JSON instead of msgpack, which costs more time.",
    "feed_subscribed": "The feed has acknowledged `symbols` symbols.",
    "feed_symbols_left_out": "The feed does not give these symbols, for the given reason.",
    "feed_waits": "The next attempt to connect begins in `delay_s` seconds.",
    "first_prices_failed": "REST did not give the latest prices of new symbols. All but those in "
    "`given_up` are asked for again.",
    "gap_not_repaired": "A gap stays, or a part of it, for the given reason.",
    "gateway_has_no_prices": "The gateway cannot read prices from Redis. It keeps trying.",
    "gateway_part_failed": "An unforeseen error in the gateway. The part is started again.",
    "history_failed": "A request for missed quotes failed. It is made again.",
    "history_not_checked": "History could not be compared with what was published. The check is "
    "made again.",
    "history_refuses_symbol": "History refuses one symbol. The other symbols are repaired.",
    "history_rows_skipped": "Rows of an answer could not be read. They count in `decode_errors`.",
    "history_was_late": "History brought quotes after a repair had ended. They are published, or "
    "reported as a gap.",
    "last_price_ignored": "A price of the earlier run cannot be used.",
    "gateway_has_no_trades": "`MDSERVICE_MARK` is `last`, and the service does not follow trades.",
    "last_prices_not_read": "The prices of the earlier run could not be read. The service starts "
    "without them.",
    "last_closes_not_read": "Last closes of what was sold before the gateway started are not "
    "known, and so is not its day. The next poll of the account asks again.",
    "latest_quotes_failed": "A request for the latest quotes of quiet symbols failed.",
    "limit_crossed": "A rule of `MDSERVICE_LIMITS` was crossed, or one of `MDSERVICE_ALERTS` "
    "with `trip`.",
    "market_hours_known": "The trading API gives the market's hours again.",
    "market_hours_unknown": "The trading API does not give the market's hours. The service takes "
    "the market for open; to a gateway it is not known.",
    "mdservice_failed": "The program ends. `reason` says why and what to do.",
    "other_services_cannot_be_noticed": "Redis does not allow the check for other services.",
    "missing_prices_failed": "A gateway cannot ask for prices that Redis has not. It tries again.",
    "on_trip_begins": "This gateway has tripped the breaker, and does at the broker what "
    "`MDSERVICE_ON_TRIP` names.",
    "on_trip_done": "An action of a trip is done at the broker. A reset does not undo it.",
    "on_trip_not_done": "An action of a trip has `failed`, or was `left` because the breaker was "
    "reset before. Act at the broker yourself.",
    "on_trip_not_saved": "Redis did not take what a trip does at the broker, or its outcome. It is "
    "done all the same, and done again if the gateway dies.",
    "on_trip_taken_over": "The gateway that had tripped the breaker has died. This one does the "
    "rest.",
    "on_trip_tried_again": "The broker failed, or could not be reached. The action is tried again.",
    "pnl_alert": "A rule of `MDSERVICE_ALERTS` was crossed.",
    "pnl_alert_not_published": "Too many alerts wait for Redis. The oldest one was dropped.",
    "pnl_alerts_wait": "Redis does not take the alerts. They are sent again.",
    "position_is_unreadable": "A row from the program's own function for positions cannot be read.",
    "position_not_followed": "The price of a position cannot be followed, for the given reason.",
    "positions_are_back": "The source of positions answers again.",
    "positions_differed": "The source of positions has another quantity than the fills of the "
    "trading stream. The source's counts.",
    "positions_are_not_followed": "The feed refused the positions' symbols. The next connection "
    "asks again.",
    "positions_failed": "The source of positions did not answer. The last known ones stay.",
    "positions_followed": "The symbols followed for positions changed.",
    "positions_function_failed": "The program's own function for positions raised an error.",
    "positions_source_is_broken": "A source of positions raised an unforeseen error.",
    "prices_connected_again": "A reader of prices is connected to Redis again.",
    "prices_disconnected": "A reader of prices lost Redis. It connects again.",
    "quiet_market_check_refused": "REST refused the check of a quiet market. The connection stays.",
    "progress_not_read": "How far the earlier run had published all records cannot be read from "
    "Redis. The repair begins at the newest record.",
    "record_from_the_future": "Records lie more than 60 s ahead of this machine's clock. They are "
    "refused and count in `decode_errors`.",
    "redis_batch_was_written": "Redis has a batch whose answer was lost. It is not sent twice.",
    "leads": "This service leads its group from now on.",
    "leads_without_a_part": "A new leader could not open its relay or its journal, and leads "
    "without it. `reason` says why.",
    "lease_claimed_again": "The leader has a new epoch. Its lease had ended, and no other service "
    "had claimed it; or another member knew a later term, of another server.",
    "lease_continued": "The leader goes on at another Redis server, or another run of it, such as "
    "a replica that sentinels have promoted.",
    "lease_not_renewed": "The leader could not renew its lease. It is tried again; after 3 s the "
    "leader steps down if a standby was alive.",
    "lease_not_released": "A leader that ends could not release its lease (at level debug). The "
    "standby leads once the lease has ended.",
    "redis_cannot_be_fenced": "This Redis user may not end an old connection. A write whose "
    "connection broke may be executed twice.",
    "redis_cannot_renew": "This Redis user may not renew keys. Prices are written again instead.",
    "redis_command_failed": "A command inside an executed write failed.",
    "redis_connected": "Connected to Redis.",
    "redis_failed": "Redis did not take a write, or could not be reached. It is tried again.",
    "redis_has_forgotten": "Redis came back without the last `batches`. The newest values are "
    "written again.",
    "redis_primary_moved": "The sentinels name another primary. The service leaves the `old` one.",
    "redis_rights_missing": "This Redis user may not write some of the wanted channels. The others "
    "are written.",
    "refresh_failed": "REST did not give the latest values of `channel` after a lost connection. "
    "It is asked again.",
    "refresh_refused": "REST refuses the latest values of `channel` after a lost connection. The "
    "gap stays without them.",
    "journal_failed": "The journal is not complete from now on. `reason` is why: the disk is full, "
    "slow or fails. The service goes on.",
    "journal_recovered": "The journal is written again. `dropped` messages are missing in it.",
    "journal_segment_damaged": "A file of the journal cannot be compressed. It stays as it is.",
    "journal_segment_deleted": "A file of the journal was too old, or the journal too large.",
    "journal_tail_cut": "A crash had left the last entry of a file of the journal incomplete. It "
    "was cut off.",
    "repair_handed_over": "The leader ends during a repair: the next one repairs the whole gap.",
    "replay_failed": "A journal cannot be read to its end. `reason` names the file.",
    "relay_cannot_accept": "The relay cannot take another connection: the machine or the process "
    "has no socket left. It tries again.",
    "relay_client_connected": "A client of the relay has logged in.",
    "relay_client_cut": "A client of the relay was too slow, and was cut off.",
    "relay_client_failed": "Serving a client of the relay has failed; its connection ends. Report "
    "it, with the traceback.",
    "relay_client_left": "A client of the relay has left.",
    "relay_client_refused": "A program connected to the relay and did not finish the TLS or "
    "websocket handshake.",
    "relay_offer_failed": "Records could not be given to the clients of the relay. Report it, with "
    "the traceback.",
    "relay_port_in_use": "The relay's default address is in use. The relay takes another port.",
    "relay_request_refused_late": "The feed refused what a client of the relay had subscribed, "
    "after the relay had acknowledged it. The client gets an error.",
    "relay_topics_released": "Channels of symbols that no client of the relay has wanted for 30 s "
    "are unsubscribed.",
    "service_stopped": "The service has stopped in order.",
    "silent_symbols_not_checked": "REST could not say whether symbols that are silent have newer "
    "records. They are checked again later.",
    "stopping": "A signal asked the program to stop.",
    "systemd_not_reached": "systemd asked for notifications, but its socket cannot be reached. "
    "It is tried again.",
    "the_other_service_is_gone": "The other service on the same names has stopped.",
    "third_party_log": "A warning or an error of a library or of the HTTP server, in `message`.",
    "throughput": "Every ten seconds: what the service has done.",
    "unexpected_error": "An error that the program does not foresee, with its traceback.",
    "trade_update_unreadable": "A message of the trading stream cannot be used. The positions are "
    "asked for at once.",
    "trade_updates_followed": "The trading stream is connected: fills change positions at once. "
    "`part` says for whom: the `service` and the `gateway` each follow it.",
    "trade_updates_lost": "The trading stream is lost or refused, for the `part` that it names. It "
    "is tried again, and positions are asked for as before.",
    "webhook_failed": "The webhook fails or cannot be reached. The message is sent again.",
    "webhook_message_dropped": "The webhook did not get a message: too many wait, it was refused, "
    "or five tries have failed.",
    "standby_cannot_look": "A standby cannot read who leads. It is tried again.",
    "standby_cannot_read": "A standby cannot read the last records. It is tried again.",
    "stands_by": "Another service leads the group, or writes here without a group, and this one "
    "stands by.",
    "stepped_down": "This service no longer leads its group. `dropped` counts the events that it "
    "had not written; the next leader repairs them.",
    "subscriptions_not_read": "What the last leader's programs wanted cannot be read from Redis.",
    "takeover_refresh_failed": "A new leader that waits for its feed gets no quotes from REST.",
    "takeover_waits_for_redis": "A new leader cannot read the last records. It is tried again.",
}


def log_events() -> str:
    """Each event with its levels, the folder that logs it, and its meaning."""
    found: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    for file in sorted(_PACKAGE.rglob("*.py")):
        folder = file.relative_to(_PACKAGE).parts[0].removesuffix(".py")
        source = file.read_text()
        if "get_logger(" not in source and "_print_json(" not in source:
            continue  # it has no log, or one of the standard library: a third party's
        for level, event in _logged(ast.parse(source)):
            found[event].add((level, folder))
    if found.keys() != _MEANINGS.keys():
        differ = ", ".join(sorted(found.keys() ^ _MEANINGS.keys()))
        raise LookupError(f"give each event a meaning in {Path(__file__).name}: {differ}")
    rows = []
    for event, places in sorted(found.items()):
        levels, folders = (
            ", ".join(dict.fromkeys(names)) for names in zip(*sorted(places), strict=True)
        )
        rows.append((code(event), levels, code(folders), _MEANINGS[event]))
    return table(("event", "level", "from", "meaning"), rows)


def _logged(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Level and name of each event; a name that a function is given stands in its calls."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            if name == "_print_json":
                level, event = call.args[:2]
                yield ast.literal_eval(level), ast.literal_eval(event)
            where, _, level_name = name.rpartition(".")
            if where != "_log" or level_name not in _LEVELS | {"exception"}:
                continue
            level_name = level_name.replace("exception", "error")
            if isinstance(call.args[0], ast.Constant):
                yield level_name, call.args[0].value
                continue
            for one in calls:
                if ast.unparse(one.func) == f"self.{function.name}":
                    yield level_name, ast.literal_eval(one.args[0])
