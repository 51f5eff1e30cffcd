"""Data sets that stay in memory for as long as there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from panning.data.image_data import ImageData


class KeptData:
    """The data sets that were used last: so many, and more of them while all take less than a number of bytes.

    >>> from panning.data import load_data
    >>> from panning.data.kept import KeptData
    >>> kept = KeptData()
    >>> kept.get("digits", lambda: load_data("digits")) is kept.get("digits", lambda: load_data("digits"))
    True
    """

    def __init__(self, n: int = 8, n_bytes: int = 512 << 20) -> None:
        self.n, self.n_bytes = n, n_bytes
        self._held: OrderedDict[Hashable, ImageData] = OrderedDict()

    def get(self, key: Hashable, load: Callable[[], ImageData]) -> ImageData:
        """The data of a key; loaded if they are not held."""
        if key not in self._held:
            self._held[key] = load()
        self._held.move_to_end(key)
        while len(self._held) > self.n and sum(data.n_bytes for data in self._held.values()) > self.n_bytes:
            self._held.popitem(last=False)
        return self._held[key]
