"""Send generated requests to a running service, by its own description, and look whether it answers as described.

    python docs/measure/service_fuzz.py [MAX_EXAMPLES] [SEED]

Starts the service on a free port of the loopback, with no slot for jobs, and runs Schemathesis with all its phases and
checks. Needs the extra `dev`. Ends with the exit code of Schemathesis.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from panning.service.api.access import Failures
from panning.service.serve import Options, Running

#: A config that fits the description and names no method is refused, as is one over the quota: neither is an error of the
#: service, so that the check of what must be accepted is told of it.
SETTINGS = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429", "503"]

[checks.missing_required_header]
expected-statuses = ["401", "421", "422", "429"]
"""


def main() -> None:
    examples, seed = (int(text) for text in [*sys.argv[1:], *("60", "1")[len(sys.argv) - 1 :]])
    with tempfile.TemporaryDirectory() as folder:
        running = Running(Options(Path(folder), port=0, slots=0))
        # As if minutes lay between any two requests without a token: they are to be told so, and not to wait.
        running.service.access.failures = Failures(clock=itertools.count(0, 100).__next__)
        made = running.new_token()
        assert made is not None
        _keep(running, made[0].id)
        thread = threading.Thread(target=running.run)
        thread.start()
        running.service.checks.data_sets()  # once it is answered the check process is warm
        settings = Path(folder) / "schemathesis.toml"
        settings.write_text(SETTINGS)
        command = [
            "-m", "schemathesis.cli", f"--config-file={settings}", "run", f"{running.url}/api/v1/openapi.json",
            "--phases=examples,coverage,fuzzing,stateful",
            f"--max-examples={examples}", f"--seed={seed}", "--checks=all", f"--header=Authorization: Bearer {made[1]}",
            "--exclude-path=/api/v1/jobs/{job}/events",
        ]  # fmt: skip
        try:
            result = subprocess.run([sys.executable, *command], cwd=folder, env={**os.environ, "NO_COLOR": "1"})
        finally:
            running.stop()
            thread.join()
    sys.exit(result.returncode)


def _keep(running: Running, token: int) -> None:
    """Let nobody revoke the token that all requests have."""
    revoke = running.service.access.revoke
    running.service.access.revoke = lambda number: number != token and revoke(number)  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
