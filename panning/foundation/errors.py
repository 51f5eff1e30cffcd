"""Every error a user can cause or meet. Each message says what was given, what is allowed and what to do.

The command line prints the message alone and ends with the class's ``exit_code``: 2 for wrong input, 1 for a job that
failed.
"""

from panning.foundation.text import printable

#: Characters of a message that are shown.
MAX_MESSAGE = 10_000


class PanningError(Exception):
    """Base of all errors of this package.

    Examples:
        >>> import torch
        >>> import panning
        >>> try:
        ...     panning.prune(torch.nn.Linear(4, 2), input_shape=(4,), density=2.0)
        ... except panning.PanningError as error:
        ...     print(error)
        Density is 2.0, but must be in (0, 1]: the fraction of weights that is kept.
    """

    exit_code = 2

    def __str__(self) -> str:
        # Names and values from files are in messages, and nobody reads a megabyte.
        text = Exception.__str__(self)  # KeyError, the base of a child, would show the repr of its argument
        shown = printable(text[:MAX_MESSAGE])
        return shown if len(text) <= MAX_MESSAGE else f"{shown}... ({len(text) - MAX_MESSAGE} more characters)"


class PanningWarning(UserWarning):
    """What a user should know of a result that is not wrong: what was left out, guessed, or says less than it seems to.

    Examples:
        >>> import warnings
        >>> import torch
        >>> import panning
        >>> head = torch.nn.Linear(4, 2)
        >>> _ = torch.nn.init.zeros_(head.weight)
        >>> with warnings.catch_warnings(record=True, action="always") as said:
        ...     masks = panning.prune(head, input_shape=(4,), density=0.5, method="magnitude")
        >>> issubclass(said[0].category, panning.PanningWarning), masks.manifest["warnings"] == [str(said[0].message)]
        (True, True)
    """


class StoppedError(KeyboardInterrupt):
    """A run that ends since its ``should_stop`` said so: what is done is kept, and the same call goes on.

    It is no ``PanningError`` and no ``Exception``, as it is no failure: what takes failed trials in passes it on.

    Examples:
        >>> import panning
        >>> try:
        ...     panning.train_agent("mlp/digits", densities=[0.1], out="runs/stopped", should_stop=lambda: True)
        ... except panning.StoppedError:
        ...     print("stopped")
        stopped
    """


class UnknownNameError(PanningError, KeyError):
    """A name that is not in its table; the message lists the nearest and all allowed names."""


class ArgumentError(PanningError, TypeError):
    """A keyword that a call does not take, or too much given by place; the message has the right form."""


class PluginError(PanningError):
    """A row that an installed package adds to a table and that cannot be imported or used; the message names the package."""


class ConfigError(PanningError, ValueError):
    """A configuration file or option with at least one wrong key or value; all of them are in one message."""


class DensityError(PanningError):
    """A density outside (0, 1], or a number of weights that cannot be kept."""


class DataError(PanningError):
    """A data set that is absent, malformed or larger than allowed."""


class DeviceError(PanningError, ValueError):
    """A name that is no device's, or a device that is not there."""


class ModelError(PanningError):
    """A model that cannot be built, scored or matched with the data."""


class ForwardError(ModelError):
    """A forward or backward pass of the network that fails while it is scored; the message names the module."""


class MaskError(PanningError):
    """A mask or mask file that is broken or belongs to another network."""


class PolicyError(PanningError):
    """A policy file that is broken, or was made for other observations or actions."""


class OutputError(PanningError):
    """A file or folder that cannot be written."""


class MissingExtraError(PanningError, ModuleNotFoundError):
    """An optional package that is not installed; the message names the extra that brings it."""


class JobError(PanningError):
    """A job that was well asked for and failed while running."""

    exit_code = 1


class NonFiniteError(JobError):
    """A loss, gradient or score that is NaN or infinite."""


class WorkerError(JobError):
    """A worker that died or went silent more often than it may."""
