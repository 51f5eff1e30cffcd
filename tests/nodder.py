"""A check process for tests of the service that needs the standard library alone: it finds every config good but those with
a method that is none, and gets stuck or ends where it is told to.

    python nodder.py SETTINGS
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from typing import Any

CARD = {
    "name": "mine", "shipped": False, "kind": "policy", "summary": "Mine.", "trained": None, "seen": {"depth": [0.1, 0.2]},
    "scores": {"a": "0.9"}, "fails": ["On wide networks."],
}  # fmt: skip
COST = {"n_parameters": 50_826, "dense_epochs": 0.0}

CONFIG = {"kind": "prune", "task": {"model": "mlp", "data": "digits"}, "density": 0.1, "method": "snip"}


def text(asked: dict[str, Any]) -> dict[str, Any]:
    """A text of JSON with its changes."""
    try:
        config = json.loads(asked["text"])
    except ValueError:
        return {"refused": "The text is not valid YAML: it begins with neither key nor brace."}
    for change in asked["changes"]:
        path, _, value = change.partition("=")
        *above, last = path.split(".")
        inner = config
        for key in above:
            inner = inner[key]
        inner[last] = float(value) if value.replace(".", "").isdigit() else value
    return {"found": {"config": config, "text": json.dumps(config) if asked["changes"] else asked["text"]}}


def rows(first: bytes, second: bytes) -> Iterator[dict[str, Any]]:
    """The layers of two files of this test, which list the weights that are kept of eight."""
    one, other = json.loads(first), json.loads(second)
    for name in {**one, **other}:
        a, b = one.get(name), other.get(name)
        told = [None if kept is None else {"n_kept": len(kept), "density": len(kept) / 8} for kept in (a, b)]
        both = None if a is None or b is None else len(set(a) & set(b))
        share = None if both is None else both / len({*a, *b})
        yield {
            "name": name, "shape": [1, 8], "n_weights": 8, "first": told[0], "second": told[1], "n_both": both,
            "jaccard": share,
        }  # fmt: skip


PAGE = {
    "text": text,
    "packaged": lambda _: {"found": [
        {"name": "prune/digits-mlp", "kind": "prune", "about": "One mask.", "text": json.dumps(CONFIG)}
    ]},
}  # fmt: skip


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the check process would say."""
    if request["what"] in ("methods", "data"):
        return {"found": [{"name": "snip"}] if request["what"] == "methods" else {"digits": True, "mnist": False}}
    if request["what"] == "policies":
        return {"found": [CARD]}
    if request["what"] == "compare":
        contents = []
        for name in ("first", "second"):
            with open(request["config"][name], "rb") as file:
                contents.append(file.read())
        total = {"n_weights": 2, "n_kept": 1, "density": 0.5, "effective_density": None}
        same = float(contents[0] == contents[1])
        layers = list(rows(*contents)) if b"fc1.weight" in contents[0] else []
        return {"found": {"first": total, "second": total, "n_both": 1, "jaccard": same, "layers": layers}}
    if request["what"] == "file":
        with open(request["config"]["path"], "rb") as file:
            start = file.read(5)
        return {"refused": "The file is bad."} if start == b"bad: " else {"found": {"begins": start.decode("latin-1")}}
    if request["what"] in PAGE:
        return PAGE[request["what"]](request)
    match request["config"].get("method"):
        case "none":
            return {"refused": "config: 1 error(s)\n  method: Unknown method 'none'."}
        case "fails":
            return {"failed": "KeyError: it"}
        case "ends":
            sys.exit(1)
        case "loops":
            while True:
                pass
    return {"found": COST if request["what"] == "cost" else None}


print(json.dumps({"found": "ready"}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    signal.setitimer(signal.ITIMER_PROF, asked["seconds"])
    said = answer(asked)
    signal.setitimer(signal.ITIMER_PROF, 0)
    print(json.dumps(said), flush=True)
