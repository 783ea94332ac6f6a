"""The sources of settings: a TOML file, the environment, and command-line flags.

:func:`collect` finds the given values and their sources. :func:`setting` makes an attrs field that
has its own description and checks its value with a parser of :mod:`mdservice.settings.parsers`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import attrs

from mdservice.errors import ConfigurationError
from mdservice.observability.masking import MASK, mask_url
from mdservice.settings.parsers import parse_optional

__all__ = [
    "CONFIG_FILE",
    "SECTION",
    "Given",
    "SettingInfo",
    "bad_setting",
    "collect",
    "describe",
    "infos",
    "record_sources",
    "setting",
]


CONFIG_FILE = "mdservice.toml"
"""The file in the working directory that is read by default."""
SECTION = "mdservice"
PREFIX = "MDSERVICE_"
_IN_PYTHON = "given in Python"

_KUBERNETES = re.compile(
    # Kubernetes sets these in every container for a service called mdservice or mdservice-x.
    r"MDSERVICE_(SERVICE_.+|PORT|PORT_.+)"
    r"|MDSERVICE_\w+_(SERVICE_HOST|SERVICE_PORT|SERVICE_PORT_\w+|PORT_\d+_(TCP|UDP|SCTP)\w*)"
)
_KUBERNETES_LINK = re.compile(r"MDSERVICE_\w+_PORT")


@attrs.frozen
class SettingInfo:
    """How one setting is written and read.

    Attributes:
        name: Its name in the file and in Python.
        environment: Its environment variables; the first that is set wins.
        parse: Turns text or a TOML value into the checked value; raises ValueError with the reason.
        help: One line for ``--help``.
        metavar: The placeholder for its value there.
        default: Its default in words, values in backticks; None if it is not set by default.
        secret: Whether it has no flag, and messages never show its value.
        address: Whether it may be a URL, whose login is a secret.
        real_world: Whether prices must not be simulated if it is set.
    """

    name: str
    environment: tuple[str, ...]
    parse: Callable[[object], object]
    help: str
    metavar: str
    default: str | None = None
    secret: bool = False
    address: bool = False
    real_world: bool = False

    @property
    def flag(self) -> str:
        """``redis_url`` → ``--redis-url``."""
        return "--" + self.name.replace("_", "-")


@attrs.frozen
class Given:
    """A given value and its source."""

    value: object = attrs.field(repr=False)
    source: str


def collect(
    infos: Sequence[SettingInfo],
    config: Path | None,
    flags: Mapping[str, str],
    environ: Mapping[str, str],
) -> dict[str, Given]:
    """Every given setting, from the source with priority: file < environment < flags.

    Args:
        infos: All known settings.
        config: The file to read; None for ``mdservice.toml`` in the working directory, which
            need not be there.
        flags: Values by the setting's name.
        environ: The environment.

    Raises:
        ConfigurationError: An unknown name, or a file that cannot be read.
    """
    given = _from_file(infos, config)
    given.update(_from_environment(infos, environ))
    names = [info.name for info in infos if not info.secret]
    for name, value in flags.items():
        if name not in names:
            raise ConfigurationError(f"there is no flag {name!r}{_suggestion(name, names)}")
        given[name] = Given(value, "flag --" + name.replace("_", "-"))
    return given


def _from_file(infos: Sequence[SettingInfo], config: Path | None) -> dict[str, Given]:
    path = Path(CONFIG_FILE) if config is None else config
    table = _read_table(path, required=config is not None)
    names = [info.name for info in infos]
    given = {}
    for name, value in table.items():
        if name not in names:
            raise ConfigurationError(
                f"{path}: [{SECTION}] has an unknown setting {name!r}{_suggestion(name, names)}"
            )
        if isinstance(value, str) and not value.strip():
            continue  # As in the environment, an empty value counts as not set.
        given[name] = Given(value, f"file {path}")
    return given


def _read_table(path: Path, *, required: bool) -> Mapping[str, object]:
    try:
        document = tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError as exc:
        if not required:
            return {}
        raise ConfigurationError(f"{path}: there is no such file") from exc
    except OSError as exc:
        raise ConfigurationError(f"{path}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError:
        # Without the cause, which holds the bytes of the file, secrets included.
        raise ConfigurationError(f"{path}: is not UTF-8 text, so not TOML") from None
    except tomllib.TOMLDecodeError as exc:
        raise ConfigurationError(f"{path}: is not valid TOML: {_place(exc)}") from None
    for name, value in document.items():
        if name != SECTION and not isinstance(value, dict):
            raise ConfigurationError(
                f"{path}: {name!r} stands outside of [{SECTION}]: move it below that line"
            )
    table = document.get(SECTION)
    if not isinstance(table, dict):
        raise ConfigurationError(f"{path}: has no [{SECTION}] section: put the settings under it")
    return table


def _place(exc: tomllib.TOMLDecodeError) -> str:
    """Python's message, without the names that it quotes from the file."""
    reason = str(exc)
    if re.fullmatch(r"[A-Za-z -]+ \(at (line \d+, column \d+|end of document)\)", reason):
        return reason
    where = re.search(r"\(at (line \d+, column \d+|end of document)\)", reason)
    return f"syntax error at {where[1]}" if where else "syntax error"


def _from_environment(infos: Sequence[SettingInfo], environ: Mapping[str, str]) -> dict[str, Given]:
    given = {}
    for info in infos:
        for variable in info.environment:
            value = _unquoted(environ.get(variable, ""))
            if value:
                given[info.name] = Given(value, f"environment variable {variable}")
                break
    _refuse_unknown(
        [variable for info in infos for variable in info.environment if variable[:1] == "M"],
        environ,
    )
    return given


def _unquoted(value: str) -> str:
    """The value without surrounding spaces and a pair of quotes.

    ``docker --env-file`` and systemd's files keep quotes that a shell removes.
    """
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1].strip()
    return value


def _refuse_unknown(known: Sequence[str], environ: Mapping[str, str]) -> None:
    for variable, value in environ.items():
        if not variable.startswith(PREFIX) or variable in known or not value.strip():
            continue
        link = _KUBERNETES_LINK.fullmatch(variable) and "://" in value
        if link or _KUBERNETES.fullmatch(variable):
            continue
        raise ConfigurationError(
            f"the environment variable {variable} is no setting{_suggestion(variable, known)}"
        )


def _suggestion(name: str, known: Iterable[str]) -> str:
    import difflib

    names = list(known)
    # Compare without case first, since difflib finds FEED and feed not similar.
    cased = name.upper() if names and names[0].isupper() else name.lower().replace("-", "_")
    close = difflib.get_close_matches(cased, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(names))}"


def setting(
    default: object,
    parse: Callable[[object], object],
    help: str,  # noqa: A002 - click's word for it
    *,
    metavar: str = "TEXT",
    environment: tuple[str, ...] = (),
    shown_default: str | None = None,
    secret: bool = False,
    address: bool = False,
    real_world: bool = False,
) -> Any:
    """An attrs field that is a setting.

    Args:
        default: Its default value; None makes the setting optional.
        parse: As in :class:`~mdservice.settings.sources.SettingInfo`, as are the others.
        help: One line for ``--help``.
        metavar: The placeholder for its value there.
        environment: Its environment variables; empty for the usual one.
        shown_default: The default in words, if it depends on where the program runs.
        secret: Whether to show it in neither flag nor repr.
        address: Whether it may be a URL, whose login the repr hides.
        real_world: Whether the simulator stays off if it is set.
    """
    info = SettingInfo(
        name="",
        environment=environment,
        parse=parse_optional(parse) if default is None else parse,
        help=help,
        metavar=metavar,
        default=shown_default or _in_words(default),
        secret=secret,
        address=address,
        real_world=real_world,
    )
    return attrs.field(
        default=default,
        repr=_repr_secret if secret else _repr_address if address else True,
        hash=False if secret else None,  # pairs of keys cannot be hashed
        metadata={"info": info},
    )


def _in_words(default: object) -> str | None:
    """A default as one writes it, in backticks; None for a setting that is not set."""
    if default in (None, (), ""):
        return None
    if isinstance(default, bool):
        return "`on`" if default else "`off`"
    if isinstance(default, tuple):
        return f"`{','.join(default)}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def describe(_owner: type, fields: list[attrs.Attribute[Any]]) -> list[attrs.Attribute[Any]]:
    """An attrs ``field_transformer`` that sets each setting's name and validator."""
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


_Class = TypeVar("_Class", bound=type)


def record_sources(settings_class: _Class) -> _Class:
    """A class decorator: the constructor records in ``sources`` which settings it was given.

    This distinguishes a default from the same value that was set. ``attrs.evolve`` passes all
    values on with the record: a value then counts as chosen if it was before, or if it differs
    from the default.
    """
    make = settings_class.__init__  # type: ignore[misc]

    @wraps(make)
    def record_and_make(self: object, **given: Any) -> None:
        make(self, **{**given, "sources": _sources(settings_class, given)})

    settings_class.__init__ = record_and_make  # type: ignore[misc]
    return settings_class


def _sources(settings_class: type, given: Mapping[str, Any]) -> dict[str, str]:
    recorded = given.get("sources")
    sources = dict(recorded or {})
    for field in attrs.fields(settings_class):
        name = field.name
        if "info" not in field.metadata or name not in given:
            continue
        made = isinstance(field.default, attrs.Factory)  # type: ignore[arg-type]
        if given[name] is None:
            sources.pop(name, None)
        elif recorded is None or not (made or given[name] == field.default):
            sources.setdefault(name, _IN_PYTHON)
    return sources


def infos(settings_class: type) -> tuple[SettingInfo, ...]:
    """The descriptions of a class's settings, in the order of its fields."""
    fields = attrs.fields(settings_class)
    return tuple(field.metadata["info"] for field in fields if "info" in field.metadata)


def bad_setting(name: str, source: str, reason: object) -> ConfigurationError:
    """The error for an invalid value: which setting, from which source, and why."""
    return ConfigurationError(f"setting {name} ({source}): {reason}")


def _checked(value: object, field: attrs.Attribute[Any]) -> object:
    info: SettingInfo = field.metadata["info"]
    try:
        return info.parse(value)
    except ValueError as exc:
        raise bad_setting(info.name, _IN_PYTHON, exc) from None


def _repr_secret(value: object) -> str:
    return repr(MASK if value else None)


def _repr_address(value: str | None) -> str:
    return repr(None if value is None else mask_url(value))
