// Alpaca's JavaScript SDK, version 3, unchanged. The lines are those of plain.py.
"use strict";
const Alpaca = require("sdk3");
const readline = require("readline");

// The SDK's stream, its path, and the listener of each channel.
const STREAMS = {
  stocks: ["data_stream_v2", "/v2/iex", {
    trades: "onStockTrade", quotes: "onStockQuote", bars: "onStockBar",
    updatedBars: "onStockUpdatedBar", dailyBars: "onStockDailyBar", statuses: "onStatuses",
    lulds: "onLulds", corrections: "onCorrections", cancelErrors: "onCancelErrors",
  }],
  crypto: ["crypto_stream_v1beta3", "/v1beta3/crypto/us", {
    trades: "onCryptoTrade", quotes: "onCryptoQuote", bars: "onCryptoBar",
    updatedBars: "onCryptoUpdatedBar", dailyBars: "onCryptoDailyBar",
    orderbooks: "onCryptoOrderbook",
  }],
  options: ["option_stream", "/v1beta1/indicative", {
    trades: "onOptionTrade", quotes: "onOptionQuote",
  }],
  news: ["news_stream", "/v1beta1/news", { news: "onNews" }],
};
const streams = new Map();

function open(name, base, feed) {
  const [attribute, path, listeners] = STREAMS[feed];
  const secure = base.startsWith("wss:");
  const address = secure ? { dataStreamUrl: base.replace("wss:", "https:") } : {};
  const alpaca = new Alpaca({ keyId: "key", secretKey: "secret", ...address });
  const stream = alpaca[attribute];
  // The SDK makes wss:// of every address: without TLS a program sets it itself.
  if (!secure) stream.session.url = base + path;
  stream.setMaxListeners(100);
  const opened = { stream, connected: false, waiting: [] };
  for (const [channel, listen] of Object.entries(listeners)) {
    stream[listen]((record) => {
      process.stdout.write(JSON.stringify([name, channel, record]) + "\n");
    });
  }
  stream.onConnect(() => {
    opened.connected = true;
    opened.waiting.splice(0).forEach((change) => change());
  });
  stream.onError((error) => process.stderr.write(`${name}: ${error}\n`));
  // The SDK gives up when a new connection is refused: a program connects again itself.
  stream.onDisconnect(() => setTimeout(() => stream.connect(), 250));
  stream.connect();
  return opened;
}

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const { stream: name, base, feed, do: action, channel, symbols } = JSON.parse(line);
  if (!streams.has(name)) streams.set(name, open(name, base, feed));
  const opened = streams.get(name);
  const prefix = action === "subscribe" ? "subscribeFor" : "unsubscribeFrom";
  let method = prefix + channel[0].toUpperCase() + channel.slice(1);
  if (!(method in opened.stream)) method = method.replace("unsubscribe", "unsubscrice");
  const change = () => opened.stream[method](symbols);
  if (opened.connected) change();
  else opened.waiting.push(change);
}).on("close", () => process.exit(0));
