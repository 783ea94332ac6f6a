"""Settings as attrs fields: each carries its description, and checks its own value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from mdservice.errors import ConfigurationError
from mdservice.settings_sources import PREFIX, SettingInfo
from mdservice.settings_values import parse_optional
from mdservice.urls import MASK, mask_url

__all__ = ["Unchosen", "bad_setting", "describe", "infos", "setting"]


class Unchosen(str):
    """A default that nobody chose: equal to the same text given, and yet to be told apart.

    Whether the simulator may run depends on what was *set*, ``feed="iex"`` included.
    """

    __slots__ = ()


def setting(
    default: object,
    parse: Callable[[object], object],
    help: str,  # noqa: A002 - click's word for it
    *,
    metavar: str = "TEXT",
    environment: tuple[str, ...] = (),
    secret: bool = False,
    address: bool = False,
) -> Any:
    """An attrs field that is a setting.

    Args:
        default: Its value where nothing is given; None makes the setting optional.
        parse: As in :class:`~mdservice.settings_sources.SettingInfo`.
        help: One line for ``--help``.
        metavar: What stands for its value there.
        environment: Its variables; empty for the usual one.
        secret: Neither flag nor repr.
        address: It may be a URL, whose login the repr hides.
    """
    info = SettingInfo(
        name="",
        environment=environment,
        parse=parse_optional(parse) if default is None else parse,
        help=help,
        metavar=metavar,
        secret=secret,
    )
    return attrs.field(
        default=default,
        repr=_repr_secret if secret else _repr_address if address else True,
        metadata={"info": info, "address": address},
    )


def describe(_owner: type, fields: list[attrs.Attribute[Any]]) -> list[attrs.Attribute[Any]]:
    """An attrs ``field_transformer``: tells each setting its name, and has it checked."""
    described = []
    for field in fields:
        info = field.metadata.get("info")
        if info is None:
            described.append(field)
            continue
        variables = info.environment or (PREFIX + field.name.upper(),)
        info = attrs.evolve(info, name=field.name, environment=variables)
        described.append(
            field.evolve(
                metadata={**field.metadata, "info": info},
                converter=attrs.Converter(_checked, takes_field=True),
            )
        )
    return described


def infos(settings_class: type) -> tuple[SettingInfo, ...]:
    """The descriptions of a class's settings, in the order of its fields."""
    fields = attrs.fields(settings_class)
    return tuple(field.metadata["info"] for field in fields if "info" in field.metadata)


def bad_setting(name: str, source: str, reason: object) -> ConfigurationError:
    """The error for a value that cannot be: which setting, from where, and why."""
    return ConfigurationError(f"setting {name} ({source}): {reason}")


def _checked(value: object, field: attrs.Attribute[Any]) -> object:
    info: SettingInfo = field.metadata["info"]
    if isinstance(value, Unchosen):  # a parser could make plain text of it
        return value
    try:
        return info.parse(value)
    except ValueError as exc:
        raise bad_setting(info.name, "given in Python", exc) from None


def _repr_secret(value: str | None) -> str:
    return repr(None if value is None else MASK)


def _repr_address(value: str | None) -> str:
    return repr(None if value is None else mask_url(value))
