"""Generated and mutated files of every kind against what the check process of the service does with uploads.

    python docs/measure/upload_fuzz.py [N_FILES] [FIRST_SEED] [RECORD.json]

A worker makes and looks at one file after the other, as the check process does: each may take 2 s of the processor, or the
worker ends, and 1 GiB beside what it has. An audit hook sees what Python does meanwhile: code that is run from text, modules
that were not loaded, processes, sockets, libraries, pickles, other files. A worker that ends is counted, and another goes on
behind. The record says how many were found good, refused, or failed by what is no sentence of ours.
"""

from __future__ import annotations

import contextlib
import json
import platform
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from upload_files import good_files, mutated

from panning.foundation.errors import PanningError
from panning.service.checker import at_most
from panning.service.checks import FILE_BYTES, FILE_S
from panning.service.files import look_at
from panning.service.words import UploadError

#: Audit events that the check of an upload may not cause. "import" counts for modules that are not loaded yet, and
#: "open" for files other than the upload.
WATCHED = (
    "import", "exec", "open", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen",
    "pty.spawn",
    "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "ctypes.dlopen", "ctypes.dlsym",
    "pickle.find_class", "marshal.loads", "marshal.load", "shutil.rmtree", "os.remove", "os.rename", "os.mkdir", "os.chmod",
    "os.symlink", "os.link", "os.putenv",
)  # fmt: skip
#: Files that one worker looks at.
PER_WORKER = 10_000


class Watch:
    """Counts the events of ``WATCHED`` that Python reports while the watch is on."""

    def __init__(self) -> None:
        self.allowed = ""
        self.is_on = False
        self.seen: Counter[str] = Counter()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.is_on or event not in WATCHED:
            return
        if event == "open" and args and str(args[0]) in (self.allowed, "/proc/self/statm"):
            return
        if event == "import" and args[0] in sys.modules:
            return
        self.seen[f"{event} {str(args[0])[:60] if args else ''}"] += 1


def look(path: Path, kind: str, watch: Watch) -> str:
    """How a file is found: good, refused, or by which exception it fails."""
    watch.allowed, watch.is_on = str(path), True
    try:
        with at_most(FILE_BYTES):
            look_at(path, kind)  # type: ignore[arg-type]
        return "good"
    except UploadError as error:
        watch.is_on = False
        assert str(path) not in str(error)
        return "refused"
    except (PanningError, MemoryError):
        return "refused"
    except Exception as error:
        return f"failed: {type(error).__name__}: {str(error)[:80]}"
    finally:
        watch.is_on = False


def work(first: int, last: int) -> None:
    """Look at the files of these seeds; a line of JSON before each hundredth, and one at the end."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    good, watch = good_files(), Watch()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "upload"
        for kind, data in good:
            path.write_bytes(data)
            assert (found := look(path, kind, watch)) == "good", (kind, found)
        for seed in range(500):  # what is imported once is loaded now
            kind, data = mutated(-seed - 1, good)
            path.write_bytes(data)
            look(path, kind, watch)
        watch.seen.clear()
        for seed in range(first, last):
            kind, data = mutated(seed, good)
            path.write_bytes(data)
            print(json.dumps({"begun": seed}), flush=True)
            signal.setitimer(signal.ITIMER_PROF, FILE_S)
            began = time.process_time()
            found = look(path, kind, watch)
            signal.setitimer(signal.ITIMER_PROF, 0)
            took = time.process_time() - began
            print(json.dumps({"kind": kind, "found": found, "s": round(took, 4), "seen": watch.seen}), flush=True)
            watch.seen.clear()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"peak_mib": int(peak.split()[1]) // 1024}), flush=True)


def fuzz(n: int, first: int) -> dict[str, Any]:
    """Look at ``n`` files in workers, or until SIGTERM; what was found."""
    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stops.append(number))
    found, seen, slow, ends, slowest, peak, seed = Counter[str](), Counter[str](), 0, list[str](), 0.0, 0, first
    while seed < first + n and not stops:
        last = min(first + n, seed + PER_WORKER)
        command = [sys.executable, __file__, "--work", str(seed), str(last)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                if stops:
                    worker.kill()
                    break
                values = json.loads(line)
                if "begun" in values:
                    seed = values["begun"] + 1
                elif "peak_mib" in values:
                    peak = max(peak, values["peak_mib"])
                else:
                    found[f"{values['kind']}: {values['found']}"] += 1
                    seen.update(values["seen"])
                    slowest = max(slowest, values["s"])
        if stops:
            break
        if worker.returncode == -signal.SIGPROF:
            slow += 1
        elif worker.returncode:
            ends.append(f"seed {seed - 1}: exit code {worker.returncode}")
            if len(ends) > 20:
                break
        print(f"{seed - first} of {n}: {dict(found)}, {slow} too slow, {len(ends)} ended", file=sys.stderr, flush=True)
    return {
        "n_files": seed - first, "first_seed": first, "found": dict(sorted(found.items())), "executed": dict(seen),
        "took_over_2_s": slow, "crashed": ends, "slowest_s": slowest, "peak_mib": peak, "torch": torch.__version__,
        "python": platform.python_version(), "machine": platform.machine(),
        "commit": subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip(),
    }  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        work(int(sys.argv[2]), int(sys.argv[3]))
        return
    n, first = (int(text) for text in [*sys.argv[1:3], *("100000", "0")[len(sys.argv[1:3]) :]])
    record = json.dumps(fuzz(n, first), indent=2)
    print(record)
    with contextlib.suppress(IndexError):
        Path(sys.argv[3]).write_text(record + "\n")


if __name__ == "__main__":
    main()
