"""The relay: Alpaca's own streams for other programs, from the service's connections.

A client is any program that speaks Alpaca's websocket protocol. The path of a record::

    router ──▶ FanOut.offer ──▶ Client.backlog ──▶ Relay's flush loop ──▶ Line (socket)

- :mod:`~mdservice.relay.messages`: a record as Alpaca's message, encoded once for all clients.
- :mod:`~mdservice.relay.session`: Alpaca's protocol, as one client sees it. Pure.
- :mod:`~mdservice.relay.fanout`: who gets which record; one bounded backlog for each client.
- :mod:`~mdservice.relay.websocket`: one websocket connection on a socket.
- :mod:`~mdservice.relay.wishes`: what all clients together want of the feeds.
- :mod:`~mdservice.relay.server`: the actor, which accepts clients and serves them.
"""
