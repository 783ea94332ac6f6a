"""Alpaca's REST side: past and latest quotes, the market's clock, positions and orders."""

from mdservice.simulator.rest.api import RestApi, RestRequest
from mdservice.simulator.rest.faults import (
    CutRest,
    GarbleRest,
    RefuseRest,
    RestFault,
    RestFaults,
    SlowRest,
)

__all__ = [
    "CutRest",
    "GarbleRest",
    "RefuseRest",
    "RestApi",
    "RestFault",
    "RestFaults",
    "RestRequest",
    "SlowRest",
]
