// Reads the stream and keeps the page as it is. See view.js for how things look.

import * as view from "./view.js";

const POINTS = 120; // one each second
const STALE_S = 60;
const EVENTS_KEPT = 100;
const ROWS_OF_POSITIONS = 500;

const find = (id) => document.getElementById(id);
const rows = new Map(); // by symbol
const halts = new Map();
let wanted = {};
let everySymbol = false;
let token = sessionStorage.getItem("mdservice-token") ?? "";
let reading = new AbortController();

// Prices

function rowOf(symbol) {
  let row = rows.get(symbol);
  if (row) return row;
  const cells = {
    name: view.make("th"), price: view.make("td", "number", "–"), change: view.make("td", "number"),
    spread: view.make("td", "number wide"), chart: view.make("td", "wide"), age: view.make("td", "number"),
    button: view.make("td", "number"),
  };
  cells.name.scope = "row";
  cells.name.append(view.make("span", "", symbol));
  const chart = view.chart();
  cells.chart.append(chart);
  const button = view.make("button", "", "×");
  button.type = "button";
  button.setAttribute("aria-label", `Unsubscribe ${symbol}`);
  button.addEventListener("click", () => change("unsubscribe", [symbol]));
  cells.button.append(button);
  row = { symbol, cells, chart, button, first: null, last: null, points: [], element: view.make("tr", "", "", ...Object.values(cells)) };
  row.element.dataset.symbol = symbol;
  rows.set(symbol, row);
  const after = [...rows.values()].filter((other) => other.symbol > symbol && other.element.isConnected)
    .reduce((least, other) => (!least || other.symbol < least.symbol ? other : least), null);
  find("price-table").tBodies[0].insertBefore(row.element, after?.element ?? null);
  return row;
}

function showPrice(record) {
  const row = rowOf(record.symbol);
  const { cells } = row;
  const before = row.last?.price;
  row.last = record;
  row.time = Date.parse(record.timestamp);
  view.write(cells.price, view.price(record.price));
  view.write(cells.spread, view.spread(record));
  if (record.price == null) return;
  row.first ??= record.price;
  const moved = ((record.price - row.first) / row.first) * 100;
  view.write(cells.change, view.percent(moved));
  cells.change.className = `number ${view.sign(moved)}`;
  if (before != null && record.price !== before) {
    cells.price.classList.remove("rise", "fall");
    void cells.price.offsetWidth; // so that the animation begins again
    cells.price.classList.add(record.price > before ? "rise" : "fall");
  }
}

function showHalt(record) {
  const row = rowOf(record.symbol);
  row.badge?.remove();
  row.badge = null;
  if (view.isHalted(record)) {
    row.badge = view.make("span", "badge", record.status_message?.toLowerCase().includes("pause") ? "paused" : "halted");
    row.badge.title = [record.status_message, record.reason_message].filter(Boolean).join(": ");
    row.cells.name.append(row.badge);
  }
  row.element.classList.toggle("halted", Boolean(row.badge));
}

function showWanted(symbols, more) {
  wanted = symbols;
  everySymbol = "*" in symbols;
  for (const symbol of Object.keys(symbols)) if (symbol !== "*") rowOf(symbol);
  for (const [symbol, row] of rows) {
    if (!everySymbol && !(symbol in symbols)) {
      row.element.remove();
      rows.delete(symbol);
    } else {
      const sources = symbols[symbol] ?? [];
      row.button.hidden = !sources.some((source) => source === "api" || source === "settings");
      row.element.title = sources.length ? `Wanted by ${sources.join(", ")}` : "";
    }
  }
  find("no-prices").hidden = rows.size > 0;
  find("more").hidden = !more;
  view.write(find("more"), more ? `${more} more symbols: use the filter to reach them.` : "");
}

setInterval(() => {
  const now = Date.now();
  for (const row of rows.values()) {
    if (!row.last) continue;
    const seconds = (now - row.time) / 1000;
    view.write(row.cells.age, view.age(seconds));
    row.element.classList.toggle("old", seconds > STALE_S);
    if (row.last.price != null) {
      row.points.push(row.last.price);
      if (row.points.length > POINTS) row.points.shift();
      view.draw(row.chart, row.points, POINTS);
    }
  }
}, 1000);

// The service

function showStatus({ status, symbols, more, left_out: leftOut, account }) {
  showState(status.state, status.state === "running" ? "good" : "bad");
  find("simulator").hidden = !status.simulator;
  const ms = status.latency_ms.receive_to_redis.p99;
  view.define(find("facts"), [
    ["symbols", String(status.symbols)],
    ["to Redis, 99 of 100", ms == null ? "–" : `${ms.toFixed(1)} ms`],
    ["backlog", view.amount(status.redis.backlog)],
    ["up for", view.age(status.uptime_s)],
  ]);
  const missing = Object.entries(leftOut).map(([symbol, why]) => `${symbol}: ${Object.values(why)[0]}`);
  const reasons = [...status.reasons, ...missing.slice(0, 5)];
  find("reasons").hidden = !reasons.length;
  view.write(find("reasons"), reasons.join("; "));
  find("account").hidden = !account;
  showWanted(symbols, more);
  find("feeds").replaceChildren(...Object.entries(status.feeds).map(([name, feed]) =>
    view.make("li", "", "",
      view.make("strong", "", name),
      view.make("span", `pill ${feed.connected ? "good" : feed.phase === "idle" ? "" : "bad"}`, feed.phase.replaceAll("_", " ")),
      view.make("p", "detail", `${feed.name}, ${feed.wanted} wanted, ${feed.acknowledged} acknowledged, ${feed.reconnects} reconnections`),
      ...(feed.last_error ? [view.make("p", "detail", `last: ${feed.last_error}`)] : []))));
  view.fill(find("actor-table"), Object.entries(status.actors).map(([name, actor]) => [
    name.replaceAll("_", " "), [actor.state, actor.state === "running" ? "" : "down"],
    actor.inbox.size ? `${actor.inbox.used} of ${actor.inbox.size}` : "–", [view.amount(actor.restarts), actor.restarts ? "down" : ""],
  ]));
  view.fill(find("channel-table"), Object.entries(status.channels).map(([name, counts]) => [
    name, view.amount(counts.received), view.amount(counts.published), view.amount(counts.conflated), view.amount(counts.backfilled),
  ]));
  find("relay").hidden = !status.relay;
  if (status.relay) {
    view.write(find("relay-address"), `${status.relay.address}${status.relay.clients.length ? "" : ": no program is connected"}`);
    view.fill(find("client-table"), status.relay.clients.map((client) => [
      client.name, client.path, view.amount(client.symbols), view.amount(client.sent), view.amount(client.backlog),
    ]));
  }
}

function showState(text, className) {
  const pill = find("state");
  view.write(pill, text);
  pill.className = `pill ${className}`;
}

function showEvent(event) {
  const when = view.make("time", "", new Date(event.at).toLocaleTimeString());
  when.dateTime = event.at;
  const item = view.make("li", "", "", when, view.make("span", event.state === "gap" || event.state === "fatal" ? "down" : "", view.told(event)));
  const list = find("events");
  list.prepend(item);
  while (list.children.length > EVENTS_KEPT) list.lastChild.remove();
  find("no-events").hidden = true;
}

// The account

function showAccount(account) {
  const warnings = account.error ? [account.error] : account.warnings ?? [];
  find("account-warning").hidden = !warnings.length;
  view.write(find("account-warning"), warnings.join("; "));
  if (account.error) return;
  const total = (name, value) => [name, view.signed(value), view.sign(value)];
  const entries = [total("unrealised", account.total_unrealized_pnl)];
  if ("total_day_pnl" in account) entries.push(total("day", account.total_day_pnl));
  if (account.realized_day_pnl != null) entries.push(total("realised today", account.realized_day_pnl));
  if (account.total_market_value != null) entries.push(["market value", view.signed(account.total_market_value).replace("+", "")]);
  if (account.market) entries.push(["market", account.market.is_open ? "open" : "closed"]);
  view.define(find("totals"), entries);
  view.fill(find("position-table"), account.positions.slice(0, ROWS_OF_POSITIONS).map((row) => [
    row.symbol, view.amount(row.qty), view.price(row.avg_entry_price), view.price(row.current_price),
    [view.signed(row.unrealized_pnl), view.sign(row.unrealized_pnl)],
    [view.percent(row.unrealized_pnl_pct), view.sign(row.unrealized_pnl_pct)],
    [view.signed(row.day_pnl), view.sign(row.day_pnl)],
    [row.problem ?? row.status, row.status === "live" || row.status === "closed" ? "" : "old"],
  ]));
  find("no-positions").hidden = account.positions.length > 0;
}

function showRisk(risk) {
  const [pill, blind] = [find("breaker"), find("blind")];
  pill.hidden = risk === null;
  blind.hidden = !risk?.blind?.length;
  if (risk === null) {
    find("limits").replaceChildren();
    return;
  }
  if (risk.error) {
    pill.className = "pill bad";
    view.write(pill, `the breaker is not known: ${risk.error}`);
    return;
  }
  if (!blind.hidden) view.write(blind, `limits that cannot be judged: ${risk.blind.slice(0, 5).join("; ")}`);
  const { breaker } = risk;
  const tripped = breaker.state === "tripped";
  pill.className = `pill ${tripped ? "bad" : "good"}`;
  view.write(pill, tripped ? `the breaker is tripped: ${breaker.rule} by ${breaker.subject}` : "the breaker is closed");
  find("limits").replaceChildren(...risk.limits.slice(0, 50).map((limit) => {
    const meter = view.make("meter");
    Object.assign(meter, { min: 0, max: 1, low: 0.7, high: 0.9, optimum: 0, value: Math.min(1, limit.used ?? 0) });
    meter.setAttribute("aria-label", limit.rule);
    const used = limit.used == null ? "not known" : `${Math.round(limit.used * 100)} %`;
    return view.make("li", "", "", view.make("span", "", `${limit.rule}${limit.subject === limit.rule.split(" ")[0] ? "" : ` (${limit.subject})`}`), meter, view.make("span", "number", used));
  }));
}

// The stream

const handlers = {
  status: showStatus,
  prices: (records) => records.forEach(showPrice),
  halts: (records) => records.forEach(showHalt),
  feed: showEvent,
  account: showAccount,
  risk: showRisk,
};

const headers = () => (token ? { Authorization: `Bearer ${token}` } : {});

async function readOnce() {
  const match = find("match").value.trim();
  const answer = await fetch(`/api/v1/page/stream?match=${encodeURIComponent(match)}`, { headers: headers(), signal: reading.signal });
  find("login").hidden = answer.status !== 401;
  if (answer.status === 401) {
    showState("needs a token", "bad");
    if (token) find("token").focus();
    await new Promise((go) => { reading.signal.addEventListener("abort", go, { once: true }); });
    return false;
  }
  if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
  find("events").replaceChildren(); // the stream begins with the latest ones
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return true;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const name = /^event: ?(.*)$/m.exec(event)?.[1];
      const data = /^data: ?(.*)$/m.exec(event)?.[1];
      if (data && handlers[name]) handlers[name](JSON.parse(data));
    }
  }
}

async function keepReading() {
  let pause = 300;
  for (;;) {
    const began = Date.now();
    try {
      await readOnce();
    } catch (error) {
      if (error.name !== "AbortError") showState("no answer, trying again…", "bad");
    }
    if (reading.signal.aborted) reading = new AbortController();
    else {
      showState("no answer, trying again…", "bad");
      if (Date.now() - began > 5000) pause = 300;
      await new Promise((go) => { setTimeout(go, pause); });
      pause = Math.min(pause * 2, 5000);
    }
  }
}

// What a person does

async function change(what, symbols) {
  const line = find("answer");
  try {
    const answer = await fetch(`/api/v1/market-data/${what}`, {
      method: "POST", headers: { ...headers(), "Content-Type": "application/json" }, body: JSON.stringify({ symbols }),
    });
    const body = await answer.json();
    const done = { subscribed: "Subscribed to", unsubscribed: "Unsubscribed from", pending: "Noted until the feed is back:" };
    view.write(line, answer.ok ? `${done[body.status] ?? body.status} ${body.symbols.join(", ")}.` : body.detail);
    return answer.ok;
  } catch {
    view.write(line, "The service does not answer. Try again when it is back.");
    return false;
  }
}

find("subscribe").addEventListener("submit", async (event) => {
  event.preventDefault();
  const symbols = find("symbol").value.split(/[\s,;]+/).filter(Boolean);
  if (symbols.length && await change("subscribe", symbols)) find("symbol").value = "";
});

let typing = 0;
find("filter").addEventListener("submit", (event) => event.preventDefault());
find("match").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    for (const row of rows.values()) row.element.remove();
    rows.clear();
    reading.abort();
  }, 250);
});

find("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = find("token").value;
  find("token").value = "";
  sessionStorage.setItem("mdservice-token", token);
  reading.abort();
});

keepReading();
