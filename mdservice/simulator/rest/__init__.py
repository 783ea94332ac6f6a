"""Alpaca's REST side: past and latest quotes, and the market's clock."""

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
