"""A runner for tests of the page that needs the standard library alone: it waits for the file ``end`` in its folder, whose
text is how it ends, or for the file ``stop``; the test writes what it tells.

    python teller.py FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])
os.set_inheritable(int(os.environ["PANNING_LEASE"]), False)
attempt = json.loads((folder / "job.json").read_text())["attempt"]
while not ((folder / "end").exists() or (folder / "stop").exists()):
    time.sleep(0.02)
stopped = (folder / "stop").exists()
said = {"state": "stopped", "reason": (folder / "stop").read_text()} if stopped else {"state": "succeeded"}
aside = folder / "attempts" / f"{attempt}.part"
aside.write_text(json.dumps(said))
os.replace(aside, aside.with_suffix(".json"))
