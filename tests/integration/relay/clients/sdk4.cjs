// Alpaca's JavaScript SDK, version 4, unchanged. The lines are those of plain.py.
"use strict";
const { Alpaca } = require("sdk4");
const readline = require("readline");

const STREAMS = {
  stocks: ["stockStream", "/v2/iex"],
  crypto: ["cryptoStream", "/v1beta3/crypto/us"],
  options: ["optionStream", "/v1beta1/indicative"],
  news: ["newsStream", "/v1beta1/news"],
};
const LISTENERS = {
  trades: "onTrade", quotes: "onQuote", bars: "onBar", updatedBars: "onUpdatedBar",
  dailyBars: "onDailyBar", statuses: "onStatus", lulds: "onLuld", imbalances: "onImbalance",
  corrections: "onCorrection", cancelErrors: "onCancelError", orderbooks: "onOrderbook",
  news: "onNews",
};
const alpaca = new Alpaca({ keyId: "key", secret: "secret" });
const streams = new Map();
const number = (_key, value) => (typeof value === "bigint" ? value.toString() : value);

function open(name, base, feed) {
  const [factory, path] = STREAMS[feed];
  const stream = alpaca.marketData[factory]({ url: base + path });
  for (const [channel, listen] of Object.entries(LISTENERS)) {
    stream[listen]((record) => {
      process.stdout.write(JSON.stringify([name, channel, record], number) + "\n");
    });
  }
  const opened = { stream, connected: false, waiting: [] };
  stream.onConnect(() => {
    opened.connected = true;
    opened.waiting.splice(0).forEach((change) => change());
  });
  stream.on("error", (error) => process.stderr.write(`${name}: ${error}\n`));
  stream.connect();
  return opened;
}

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const { stream: name, base, feed, do: action, channel, symbols } = JSON.parse(line);
  if (!streams.has(name)) streams.set(name, open(name, base, feed));
  const opened = streams.get(name);
  const prefix = action === "subscribe" ? "subscribeFor" : "unsubscribeFrom";
  const method = prefix + channel[0].toUpperCase() + channel.slice(1);
  const change = () => opened.stream[method](symbols);
  if (opened.connected) change();
  else opened.waiting.push(change);
}).on("close", () => process.exit(0));
