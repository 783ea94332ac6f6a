"""The commands of a block, and what is shown of their output."""

from __future__ import annotations

import re

import attrs

_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")


@attrs.frozen
class Command:
    """One command.

    Attributes:
        text: As bash takes it; may be of several lines.
        shown: The lines of its output that the page shows, in a ``console`` block.
    """

    text: str
    shown: tuple[str, ...] = ()


def commands_of(language: str, text: str) -> list[Command]:
    """Of an ``sh`` block each command; of a ``console`` block those behind ``$``.

    Raises:
        ValueError: A console block does not begin with a command.
    """
    if language == "sh":
        return [Command(command) for command in _split(text.splitlines())]
    found: list[tuple[list[str], list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif not found:
            raise ValueError(f"no command stands before {line!r}")
        elif not found[-1][1] and _is_open(found[-1][0]):
            found[-1][0].append(line.removeprefix("> "))
        else:
            found[-1][1].append(line)
    return [Command("\n".join(lines), tuple(shown)) for lines, shown in found]


def _split(lines: list[str]) -> list[str]:
    commands: list[list[str]] = []
    for line in lines:
        if commands and _is_open(commands[-1]):
            commands[-1].append(line)
        elif line.strip() and not line.lstrip().startswith("#"):
            commands.append([line])
    return ["\n".join(command) for command in commands]


def _is_open(lines: list[str]) -> bool:
    """Whether the command goes on in the next line."""
    heredoc = _HEREDOC.search(lines[0])
    if heredoc:
        return heredoc[2] not in lines[1:]
    return lines[-1].endswith("\\")


# What is shown

_NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?")
_SOCKET = re.compile(r"(?:/[\w.-]+)*/mdservice\b")
_SERVER = re.compile(r"mdservice\.[0-9a-f]+\.valkey")


def _normal(line: str) -> str:
    line = _SERVER.sub("mdservice.N.valkey", _SOCKET.sub("/mdservice", line))
    return " ".join(_NUMBER.sub("0", line).split())


def missing(shown: tuple[str, ...], output: str) -> list[str]:
    """The shown lines that the output has nowhere, numbers and paths of sockets apart.

    ``…`` stands for anything: as a line of its own for other lines.
    """
    lines = [_normal(line) for line in output.splitlines()]
    return [line for line in shown if line.strip(" …") and not _is_among(_normal(line), lines)]


def _is_among(shown: str, lines: list[str]) -> bool:
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in shown.split("…")))
    return any(pattern.fullmatch(line) for line in lines)


def same_structure(shown: object, told: object) -> bool:
    """Whether JSON that is told has the fields and types of what is shown.

    A null that is shown stands for any number or text. Of lists the first items count: one that
    is cut short stands for a longer one, but not for an empty one.
    """
    if isinstance(shown, dict) and isinstance(told, dict):
        return shown.keys() == told.keys() and all(
            same_structure(value, told[name]) for name, value in shown.items()
        )
    if isinstance(shown, list) and isinstance(told, list):
        return not shown or (bool(told) and same_structure(shown[0], told[0]))
    if shown is None:
        return not isinstance(told, dict | list)
    return _kind(shown) == _kind(told)


def _kind(value: object) -> type:
    return float if type(value) is int else type(value)
