"""Print every price: any program that speaks Redis can read the same channel.

python read_prices.py redis://localhost:6379 AAPL MSFT
"""

import json
import sys

import redis

url, *symbols = sys.argv[1:]
server = redis.Redis.from_url(url)
updates = server.pubsub(ignore_subscribe_messages=True)
updates.subscribe("price.updated")
for symbol in symbols:  # after the subscription, so that nothing is lost between the two
    latest = server.get(f"price:{symbol}")
    print(symbol, json.loads(latest)["price"] if latest else "has no price", flush=True)
for message in updates.listen():
    event = json.loads(message["data"])
    if not symbols or event["symbol"] in symbols:
        print(event["symbol"], event["price"], event["timestamp"], event["seq"], flush=True)
