"""Things of the caller's own, a network or data, where configs have a name.

A config, a record and a folder's identity hold the name of such a thing: its label and a hash of its content, so that other
weights or other data are another name. A file may hold that name, too, but nothing comes of it: the thing itself is in the
Python process that made it, and in the workers that this process sends it to.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

#: What the names of such things begin with.
PREFIX = "own:"


class Own:
    """Base of what stands in a config in place of a name. Two of one name are equal.

    Attributes:
        label: what tables call it.
        content: hash of the content.
    """

    def __init__(self, label: str, content: str) -> None:
        self.label = label
        self.content = content

    @property
    def name(self) -> str:
        """What stands for it in configs and records."""
        return "-".join(filter(None, (PREFIX + self.label, self.content)))

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def code_modules(self) -> set[str]:
        """Names of the Python modules that its code lies in."""
        return set()

    @property
    def _identity(self) -> object:
        return self.name

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        as_name = core_schema.plain_serializer_function_ser_schema(
            str, return_schema=core_schema.str_schema(), when_used="json"
        )
        return core_schema.is_instance_schema(cls, serialization=as_name)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string"}


def content_hash(*parts: bytes | memoryview) -> str:
    """A short hash of the parts, one after the other, each with its length."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)
    return hashed.hexdigest()[:12]


def label_of(name: str) -> str:
    """The name of a model or of data as a title shows it: of the caller's own without the hash.

    Examples:
        >>> from panning.foundation.own import label_of
        >>> label_of("own:Net-3872cc92a2ec"), label_of("lenet5")
        ('Net', 'lenet5')
    """
    return name.removeprefix(PREFIX).rpartition("-")[0] if name.startswith(PREFIX) else name


def code_of(kind: Any) -> bytes:
    """The text of a class or function, or its compiled code where there is no text (a class typed at a prompt)."""
    try:
        return inspect.getsource(kind).encode()
    except (OSError, TypeError):
        return b"".join(_compiled(kind)) or repr(getattr(kind, "__qualname__", type(kind))).encode()


def _compiled(kind: Any) -> Iterator[bytes]:
    own = {"": kind} if hasattr(kind, "__code__") else getattr(kind, "__dict__", {})
    for name, value in sorted(own.items()):
        if code := getattr(value, "__code__", None):
            constants = [constant for constant in code.co_consts if not inspect.iscode(constant)]
            yield f"{name} {code.co_names} {constants}".encode() + code.co_code
