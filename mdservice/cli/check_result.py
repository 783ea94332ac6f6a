"""What a check found."""

from __future__ import annotations

from typing import Literal

import attrs

__all__ = ["CheckResult", "failed", "passed", "skipped", "warned"]


@attrs.frozen
class CheckResult:
    """One line of ``mdservice check``.

    Attributes:
        name: What was tried: ``feed``.
        outcome: ``ok``, ``warn``, ``FAIL`` or ``skip``.
        detail: What was found.
        advice: What to do about it; empty where the detail says so itself.
        configuration: Whether it is a failure that only other settings fix (exit code 78).
    """

    name: str
    outcome: Literal["ok", "warn", "FAIL", "skip"]
    detail: str
    advice: str = ""
    configuration: bool = False


def passed(name: str, detail: str) -> CheckResult:
    """It works."""
    return CheckResult(name, "ok", detail)


def warned(name: str, detail: str, advice: str) -> CheckResult:
    """It works, but not all of it."""
    return CheckResult(name, "warn", detail, advice)


def skipped(name: str, detail: str) -> CheckResult:
    """It was not tried, for this reason."""
    return CheckResult(name, "skip", detail)


def failed(name: str, detail: str, advice: str = "", *, configuration: bool = False) -> CheckResult:
    """It does not work."""
    return CheckResult(name, "FAIL", detail, advice, configuration)
