"""How a session's tokens are drawn: one table of the parameters, for all faces, the wire, stores and docs."""

from paceline.sampling.kinds import Bound
from paceline.sampling.parameters import (
    SMALLEST_TOP_P,
    LogitsParams,
    Parameter,
    SamplingError,
    SamplingParams,
    SamplingRequest,
    parameters_of,
)

__all__ = [
    "SMALLEST_TOP_P",
    "Bound",
    "LogitsParams",
    "Parameter",
    "SamplingError",
    "SamplingParams",
    "SamplingRequest",
    "parameters_of",
]
