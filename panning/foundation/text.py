"""Text from outside, as names in files, configs and records: how it is shown on a terminal and stands in Markdown.

A terminal obeys control characters, a page shows markup and loads images, and letters that run from right to left reorder
what stands around them. Nothing that comes from outside does any of it here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

#: What Markdown takes for more than text: the bar of a table, the end of a link's or image's name, the begin of a tag.
_ACTIVE = re.compile(r"\||\](?=[(\[])|!(?=\[)|<(?=[A-Za-z/!?])")
_INSTEAD = {"|": "\\|", "]": "\\]", "!": "\\!", "<": "&lt;"}


def printable(text: str) -> str:
    """The text with its control and formatting characters written out; lines stay lines.

    Examples:
        >>> from panning.foundation.text import printable
        >>> print(printable("a\\x1b[2Jb"))
        a\\x1b[2Jb
    """
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else ascii(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """``printable``, on one line.

    Examples:
        >>> from panning.foundation.text import one_line
        >>> one_line("a\\n  b\\x07")
        'a b\\\\x07'
    """
    return printable(" ".join(text.split()))


def first_line(error: object) -> str:
    """The first line of what an error says, or the name of its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).partition("\n")[0]


def half_letter(values: object) -> str | None:
    """The first text in plain values that no file in UTF-8 can hold, since it has a surrogate alone; None if there is none.

    Examples:
        >>> from panning.foundation.text import half_letter
        >>> half_letter({"name": ["whole", "half \\ud800"]}), half_letter("whole")
        ('half \\ud800', None)
    """
    if isinstance(values, str):
        return None if values.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in values) else values
    inner = [*values, *values.values()] if isinstance(values, Mapping) else values
    found = map(half_letter, inner) if isinstance(inner, list | tuple) else ()
    return next((half for half in found if half is not None), None)


def in_markdown(text: str) -> str:
    """``one_line``, which Markdown shows as it is: no bar ends its cell, no tag, link or image begins in it.

    Emphasis stays, which our own cells use and which harms nobody.

    Examples:
        >>> from panning.foundation.text import in_markdown
        >>> print(in_markdown("a|b <script>x</script>\\n![y](http://z), p < 0.05"))
        a\\|b &lt;script>x&lt;/script> \\![y\\](http://z), p < 0.05
    """
    return _ACTIVE.sub(lambda found: _INSTEAD[found[0]], one_line(text))


def in_bytes(n_bytes: int) -> str:
    """A size in the unit that fits.

    Examples:
        >>> from panning.foundation.text import in_bytes
        >>> in_bytes(0), in_bytes(1023), in_bytes(1536), in_bytes(5 << 30)
        ('0 B', '1,023 B', '1.5 KiB', '5.0 GiB')
    """
    size, unit = float(n_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{n_bytes:,} B" if unit == "B" else f"{size:.1f} {unit}"
