"""The name that ``panning.masks.convert`` had in earlier versions; kept for code that imports it."""

from panning.masks.convert import FORMATS, format_of, read_any, write_as

__all__ = ["FORMATS", "format_of", "read_any", "write_as"]
