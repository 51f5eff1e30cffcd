"""Memory of this package's own processes.

glibc gives every large block back to the system when it is freed and takes it again for the next tensor, whose pages the
system then has to clear one by one: a third of the time of scoring a large network (``panning bench speed``).
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """Let this process keep what it frees for its next tensors; where there is no glibc, nothing changes.

    For processes that are ours from their start (the command line, workers): a library does not decide this for others.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
