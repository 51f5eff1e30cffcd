"""The client of the service. It needs neither torch nor the extra ``service``."""

from panning.client.client import Client, config_values
from panning.client.requests import ServiceError, UnreachableError

__all__ = ["Client", "ServiceError", "UnreachableError", "config_values"]
