"""Optional packages: what an installation without extras lacks is said in one sentence, where it is first needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from panning.foundation.errors import MissingExtraError

#: Package -> the extra in pyproject.toml that brings it.
EXTRAS = {
    "ray": "search",
    "stable_baselines3": "search",
    "tensorboard": "search",
    "scipy": "bench",
    "scikit_posthocs": "bench",
    "matplotlib": "bench",
    "pandas": "bench",
    "typer": "cli",
    "rich": "cli",
    "torchvision": "data",
    "sklearn": "data",
    "PIL": "data",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "accelerate": "integrations",
    "timm": "integrations",
    "transformers": "integrations",
    "lightning": "integrations",
    "wandb": "integrations",
    "mlflow": "integrations",
    "optuna": "samplers",
    "cmaes": "samplers",
    "sqlalchemy": "service",
    "alembic": "service",
    "fastapi": "service",
    "starlette": "service",
    "uvicorn": "service",
    "h11": "service",
    "prometheus_client": "service",
    "jinja2": "service",
    "psycopg": "postgres",
    "pytest": "dev",
}


@contextmanager
def extra_packages() -> Iterator[None]:
    """Around imports of optional packages, or around a function that makes some.

    Raises:
        MissingExtraError: if a package of ``EXTRAS`` is not installed; any other failed import stays as it is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if isinstance(error, MissingExtraError) or package not in EXTRAS:
            raise
        message = f"This needs {package}, which is not installed: pip install 'panning[{EXTRAS[package]}]'."
        raise MissingExtraError(message, name=error.name) from None
