"""The network that tests cut: what its faults do to both ends."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.integration.network import Network

LIMIT_S = 20.0


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(LIMIT_S)
        yield server


@pytest.fixture
def network(server: socket.socket) -> Iterator[Network]:
    with closing(Network(server.getsockname()[1])) as network:
        yield network


def connect(network: Network, within_s: float = LIMIT_S) -> socket.socket:
    return socket.create_connection(("127.0.0.1", network.port), within_s)


def test_what_was_held_arrives_later_although_its_sender_has_left(
    server: socket.socket, network: Network
) -> None:
    client = connect(network)
    end, _ = server.accept()
    with client, end:
        end.settimeout(0.1)
        client.sendall(b"before")
        assert end.recv(100) == b"before"
        network.hold()
        settle(server, network)
        client.sendall(b"held")
        client.close()
        with pytest.raises(TimeoutError):
            end.recv(100)
        network.up()
        end.settimeout(LIMIT_S)
        assert end.recv(100) == b"held"
        assert end.recv(100) == b""


def test_answers_alone_are_held(server: socket.socket, network: Network) -> None:
    client = connect(network)
    end, _ = server.accept()
    with client, end:
        end.settimeout(LIMIT_S)
        network.hold(answers_only=True)
        settle(server, network)
        client.sendall(b"question")
        assert end.recv(100) == b"question"
        end.sendall(b"answer")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(100)
        network.up()
        client.settimeout(LIMIT_S)
        assert client.recv(100) == b"answer"


def test_a_request_for_a_connection_is_refused_or_gets_no_answer(
    server: socket.socket, network: Network
) -> None:
    client = connect(network)
    end, _ = server.accept()
    with client, end:
        end.settimeout(LIMIT_S)
        network.hang()
        ask(client, end)
        with pytest.raises(TimeoutError):
            connect(network, 0.1)
        network.refuse()
        ask(client, end)
        with pytest.raises(ConnectionRefusedError):
            connect(network)
        network.up()
        ask(client, end)
        settle(server, network)


def settle(server: socket.socket, network: Network) -> None:
    """Return once the network has done what was asked for before: a new connection works."""
    with connect(network):
        server.accept()[0].close()


def ask(client: socket.socket, end: socket.socket) -> None:
    """The connection of now works; what was asked for before may be done only at its second use."""
    for _ in range(2):
        client.sendall(b"question")
        assert end.recv(100) == b"question"
