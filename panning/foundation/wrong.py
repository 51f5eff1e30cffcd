"""What pydantic finds wrong, in our words: a key, an option or an argument *must be* something."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

#: Kind of pydantic's error -> what is allowed, with the error's own values. Others speak in pydantic's words.
MUST: dict[str, str] = {
    **dict.fromkeys(["bool_type", "bool_parsing"], "must be true or false"),
    **dict.fromkeys(["int_type", "int_parsing", "int_from_float", "int_parsing_size"], "must be a whole number"),
    **dict.fromkeys(["float_type", "float_parsing"], "must be a number"),
    "finite_number": "must be a finite number",
    "string_type": "must be a text",
    **dict.fromkeys(["tuple_type", "list_type"], "must be a list"),
    **dict.fromkeys(["dict_type", "mapping_type", "model_type", "model_attributes_type"], "must be keys with values"),
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} item(s)",
    "too_long": "must have at most {max_length} item(s)",
    "literal_error": "must be {expected}",
    "none_required": "must be null",
}


def what_is_wrong(entry: Mapping[str, Any]) -> str:
    """An entry of a ``ValidationError`` as the end of a sentence, with what was given.

    Examples:
        >>> from panning.foundation.wrong import what_is_wrong
        >>> what_is_wrong({"type": "greater_than", "msg": "Input should be ...", "ctx": {"gt": 0}, "input": -1})
        'must be more than 0 (given: -1)'
    """
    message = MUST.get(entry["type"], "").format(**entry.get("ctx", {})) or entry["msg"].removeprefix("Value error, ")
    # reprlib, since a few YAML aliases can stand for gigabytes when written out.
    return f"{message} (given: {reprlib.repr(entry['input'])})"
