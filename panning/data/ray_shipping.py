"""Data sets in Ray's object store: put there once, copied to each node that asks, and mapped by its workers."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from panning.data.image_data import ImageData
from panning.data.shipped import Shipment, accept
from panning.foundation.errors import DataError
from panning.foundation.extras import extra_packages
from panning.foundation.ray_answers import answer
from panning.foundation.text import first_line

with extra_packages():
    import ray
    from ray.exceptions import RayError

#: How long the copy to a node may take.
FETCH_S = 300.0
#: The key of data (``data_name``) -> a list of one reference: a bare reference in a call Ray fetches at once, needed or not.
Offers = Mapping[Hashable, list[Any]]


class Cargo:
    """The data sets that a driver has put into the object store.

    Attributes:
        offers: all of it.
    """

    def __init__(self) -> None:
        self.offers: dict[Hashable, list[Any]] = {}

    def load(self, data: Mapping[Hashable, Callable[[], ImageData]]) -> Offers:
        """Put data there that are not there yet; what is new.

        Raises:
            DataError: if they cannot be sent.
        """
        new: dict[Hashable, list[Any]] = {}
        for name, read in data.items():
            if name in self.offers:
                continue
            found = read()
            try:
                new[name] = [ray.put(Shipment.of(found))]
            except RayError as error:
                raise DataError(f"{found.label} do not fit into Ray's object store: {first_line(error)}") from None
        self.offers |= new
        return new


def accept_offers(offers: Offers) -> None:
    """Know in this process, a worker, where it gets the data that it lacks."""
    accept({name: functools.partial(_fetched, refs[0]) for name, refs in offers.items()})


def _fetched(ref: Any) -> Shipment:
    try:
        shipment: Shipment = answer(ref, FETCH_S)
    except RayError as error:
        raise DataError(f"The node {platform.node()} did not get the data: {first_line(error)}") from None
    return shipment
