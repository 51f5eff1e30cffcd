"""What version 1 of the mask file wrote, every later version reads. The files under ``golden`` are never written again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from panning.masks import file as maskfile
from panning.masks.file import dump_masks, fingerprint, load_masks
from panning.masks.layout import Layout
from panning.masks.masks import Masks

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden"
PAGE = HERE.parent / "docs" / "mask-format.md"
#: Neither sorted nor in whole bytes; a name that JSON escapes.
LAYOUT = Layout(
    ("conv.weight", "blocks.0.attn.in_proj_weight", "tête.weight", "a"), ((4, 3, 3, 3), (12, 4), (1, 5, 7), (1,))
)
MANIFEST = {
    "method": "synflow",
    "seed": 7,
    "all_alive": True,
    "effective_density": 0.25,
    "input_shape": [3, 32, 32],
    "schedule": None,
    "note": 'a "quoted" word, ü, \n',
    "rounds": {"n": 100, "densities": [0.5, 1e-05]},
}
PACKED = pytest.mark.parametrize("packed", [True, False], ids=["bits", "bytes"])


def expected() -> Masks:
    """Weight i of all is kept if i² + 3i leaves 0 to 2 when divided by 7."""
    i = torch.arange(LAYOUT.n_prunable)
    return Masks(LAYOUT, (i * i + 3 * i) % 7 < 3, MANIFEST)


def golden(packed: bool) -> Path:
    return GOLDEN / f"mask-v1-{'bits' if packed else 'bytes'}.safetensors"


def description(data: bytes) -> dict[str, Any]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["panning"])


@PACKED
def test_a_file_of_version_1_is_read(packed: bool) -> None:
    masks = load_masks(golden(packed))
    assert masks == expected() and masks.manifest == MANIFEST
    assert description(golden(packed).read_bytes())["format_version"] == 1
    assert fingerprint(masks.layout) == "d2f4e340744d709ccb44905371b8f998903f262cd848b96a2b4775512a2cca47"


@PACKED
def test_version_1_is_still_written_to_the_byte(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the versions of what wrote it, which are taken from the file here."""
    data = golden(packed).read_bytes()
    monkeypatch.setattr(maskfile, "_versions", lambda: description(data)["versions"])
    assert maskfile.FORMAT_VERSION == 1, "a new version has golden files of its own; those of version 1 stay to be read"
    assert dump_masks(expected(), packed=packed) == data


@PACKED
def test_the_reader_on_the_page_reads_them(packed: bool) -> None:
    """The page is enough to read a mask without panning."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert "panning" not in re.findall(r"^(?:import|from) (\w+)", code, flags=re.MULTILINE)
    names: dict[str, Any] = {}
    exec(code, names)
    masks = names["read_masks"](golden(packed))
    assert list(masks) == list(LAYOUT.names)
    assert all(torch.equal(torch.from_numpy(masks[name]), mask) for name, mask in expected().items())
