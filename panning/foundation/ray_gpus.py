"""How the workers of a Ray cluster share its GPUs."""

from __future__ import annotations

import math

from panning.foundation.device import check_device_name
from panning.foundation.errors import DeviceError
from panning.foundation.extras import extra_packages

with extra_packages():
    import ray


def gpu_share(device: str, n_workers: int) -> float:
    """The fraction of a GPU that Ray reserves for each of ``n_workers``; 0 where they compute on the processor.

    Ray shows each worker its GPU alone, so that ``cuda`` is the right one everywhere. Ray must be running.

    Raises:
        DeviceError: if the cluster has no GPU, or the device is a GPU that Ray may not give a worker.
    """
    n_gpus = int(ray.cluster_resources().get("GPU", 0))
    if check_device_name(device) in ("cpu", "mps") or (device == "auto" and not n_gpus):
        return 0.0
    if device.startswith("cuda:"):
        raise DeviceError(
            f"Ray chooses the GPU of each worker, so '{device}' cannot be asked for: take 'cuda', and set "
            "CUDA_VISIBLE_DEVICES to the GPUs that may be used, or 0 workers."
        )
    if not n_gpus:
        raise DeviceError("The Ray cluster has no GPU: compute on the device 'cpu', or join a cluster that has one.")
    return _share(n_workers, n_gpus)


def _share(n_workers: int, n_gpus: int) -> float:
    """Rounded down to Ray's precision, so that as many workers fit on a GPU as must: 6 workers on 1 GPU have 0.1666 each."""
    return math.floor(10_000 / math.ceil(n_workers / n_gpus)) / 10_000
