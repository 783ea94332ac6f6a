"""What an HTTP API's description allows, and what it does not: every check of schemathesis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

__all__ = ["labels", "try_operation"]


def labels(schema: Any) -> list[str]:
    """The operations: ``GET /status``."""
    return [each.ok().label for each in schema.get_all_operations()]


def try_operation(schema: Any, label: str, check: Callable[[Any], None], examples: int) -> None:
    """Check requests of an operation that are the same at each run.

    Its examples come first, then requests that its description allows, and others.

    Args:
        schema: The description.
        label: The operation.
        check: Sends a request and checks the answer.
        examples: How many requests of each sort.
    """
    operation = schema.find_operation_by_label(label)
    takes_something = any(True for _ in operation.iter_parameters()) or bool(operation.body)
    strategies = [(each, 1) for each in operation.get_strategies_from_examples()]
    strategies.append((operation.as_strategy(), examples if takes_something else 1))
    if takes_something:
        negative = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
        strategies.append((negative, examples))
    for strategy, most in strategies:
        bounded = settings(
            max_examples=most,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        bounded(given(strategy)(check))()
