"""The command ``panning``, also as ``python -m panning``."""

import sys

from panning.foundation.errors import MissingExtraError
from panning.foundation.extras import extra_packages


def main() -> None:
    """Run the command line; without the packages of the extra ``cli``, one sentence says how to get them."""
    try:
        with extra_packages():
            from panning.cli import main as run
    except MissingExtraError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    run()


if __name__ == "__main__":
    main()
