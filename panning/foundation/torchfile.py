"""Files of ``torch.save`` from outside: plain tensors, and nothing that runs."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import torch

from panning.foundation.torch_private import stored_record

#: What the pickle of a dict of tensors may name. torch's own list for ``weights_only`` is longer: it has bytearray and
#: empty tensors, which a few bytes make as large as they like.
GLOBALS = re.compile(
    r"collections OrderedDict|torch (Size|[A-Za-z0-9]+Storage|[a-z0-9_]+)|torch\.storage (Untyped|Typed)Storage"
    r"|torch\._utils _rebuild_(tensor(_v2|_v3)?|parameter(_with_state)?|sparse_tensor|meta_tensor_no_storage)"
    r"|torch\._tensor _rebuild_from_type_v2|torch\.nn\.parameter Parameter|torch\.serialization _get_layout"
)


def read_torch_file(path: Path) -> Any:
    """What ``torch.load(weights_only=True)`` gives, on the CPU.

    Raises:
        ValueError: with what was found, if the file is damaged or holds more than containers and tensors.
        OSError: if it cannot be read.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about protocols; what does not load is refused anyhow
            _check_globals(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except _Refused:
        raise
    except (pickle.UnpicklingError, ValueError):
        # torch's own message tells the reader to load it all the same.
        raise _Refused(
            "a torch file that is damaged or has other objects than tensors, maybe code; nothing in it was run"
        ) from None
    except Exception as error:  # hostile bytes can take torch's reader into any error
        raise _Refused(f"a torch file that cannot be loaded ({type(error).__name__}); is it cut?") from None


class _Refused(ValueError):
    """Error: what was found."""


def _check_globals(path: Path) -> None:
    """Refuse a file that names anything outside ``GLOBALS``, before any of it is loaded."""
    with open(path, "rb") as file:
        if file.read(2) == b"PK":  # asked of torch's own reader: another might see another record of that name
            pickles: BinaryIO = io.BytesIO(stored_record(path, "data.pkl"))
            n_pickles = 1
        else:  # the old form: a mark, a version, the machine's sizes, the dict, the names of the storages
            pickles, n_pickles = file, 5
            file.seek(0)
        for _ in range(n_pickles):
            for opcode, argument, _ in pickletools.genops(pickles):
                # torch's reader takes no other opcode that names something.
                if opcode.name == "GLOBAL" and GLOBALS.fullmatch(str(argument)) is None:
                    named = ascii(str(argument))[1:-1]
                    raise _Refused(f"a torch file that names {named[:117]}, maybe code; nothing in it was run")
