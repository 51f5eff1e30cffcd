"""A runner for tests of the service that needs the standard library alone: it digs for some steps, leaves what it has dug
after each, and tells of each in the file of events. It has helpers in sessions of their own, as Ray has workers.

    python digger.py FOLDER
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])
os.set_inheritable(int(os.environ["PANNING_LEASE"]), False)
order = json.loads((folder / "job.json").read_text())
config, attempt = order["config"], order["attempt"]
(folder / "run").mkdir(exist_ok=True)
alone = open(folder / "run" / ".lock", "w")  # noqa: SIM115
try:
    fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    (folder / "TWICE").touch()
for _ in range(config.get("helpers", 0)):  # orphans at once: their parent ends
    orphan = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    subprocess.run([sys.executable, "-c", orphan], start_new_session=True, check=True)


def end(state: str, **more: object) -> None:
    path = folder / "attempts" / f"{attempt}.json"
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps({"state": state, **more}))
    os.replace(aside, path)
    sys.exit()


if "prints" in config:
    print("x" * config["prints"], flush=True)
if "exits" in config:
    sys.exit(config["exits"])
place = folder / "run" / "dug.json"
if "fifo" in config:  # whoever reads it knows that it runs, and who it is
    Path(config["fifo"]).write_text(json.dumps({"runner": os.getpid(), "supervisor": os.getppid()}))
n_steps = config.get("steps", config.get("rounds", 3))  # a config that came through the API has rounds
dug = json.loads(place.read_text()) if place.exists() else {"steps": 0, "digest": str(config.get("seed", 0))}
with open(folder / "events.jsonl", "ab+") as log:
    log.seek(0)
    log.truncate(log.read().rfind(b"\n") + 1)
    while dug["steps"] < n_steps:
        if (folder / "stop").exists() and not config.get("deaf"):
            end("stopped", reason=(folder / "stop").read_text())
        time.sleep(config.get("step_s", 0.01))
        dug = {"steps": dug["steps"] + 1, "digest": hashlib.sha256(dug["digest"].encode()).hexdigest()}
        told = {"stage": "digging", "done": dug["steps"], "total": n_steps, "kind": "round", "facts": {}}
        log.write(json.dumps({**told, "step": dug["steps"], "attempt": attempt}).encode() + b"\n")
        log.flush()
        aside = place.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(dug))
        os.replace(aside, place)
end("succeeded")
