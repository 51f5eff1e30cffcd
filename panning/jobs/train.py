"""One training in a folder of its own: its config, the check of its input, and the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import SerializerFunctionWrapHandler, field_serializer, model_validator

from panning.foundation.config import OR_NAME, Seed, dump_config
from panning.foundation.files import write_atomic
from panning.foundation.progress import Listener, silent
from panning.foundation.stopping import ShouldStop, stops_when
from panning.jobs.artefacts import tell_artefacts
from panning.jobs.by import DynamicSpec
from panning.jobs.runs import run_folder, said_of, started_from
from panning.jobs.single import TrainingPlan, train_in_folder
from panning.masks.file import fingerprint, load_masks
from panning.masks.masks import Density, Masks, check_masks_fit, digest_of
from panning.tasks import NamedTask, RunConfig, TaskSpec, load_task
from panning.training import Recipe
from panning.training.moving.in_shape import shape_to_lose
from panning.training.presets import load_dynamic_preset, load_recipe


class TrainConfig(RunConfig):
    """One training: dense, under a mask, or with masks that move.

    >>> from panning.jobs.train import TrainConfig
    >>> task = {"model": "lenet5", "data": "fashion_mnist"}
    >>> config = TrainConfig(task=task, dynamic="dpf/lenet5-fashion_mnist/short", density=0.02)
    >>> config.dynamic.name, config.recipe.epochs
    ('dpf', 2.0)

    Attributes:
        recipe: as text, a preset: ``lenet5-fashion_mnist/short``.
        mask: a mask file; where masks move, the first mask. A relative path lies beside the config.
        dynamic: a row of ``DYNAMICS``, alone or with other numbers; or a preset, ``METHOD/MODEL-DATA/FORM``, whose recipe
            is taken where none is given.
        density, all_alive, shape: of masks that move (``panning.move_masks``).
        seed: of weights, batches and everything random; None takes the mask's, or 0.
        weights: a file to start from in place of the weights of the seed; a relative path lies beside the config.
    """

    #: Fields that name files; a relative path is looked for beside the config.
    FILES: ClassVar = ("mask", "weights")

    kind: Literal["train"] = "train"
    task: NamedTask
    recipe: Annotated[Recipe, OR_NAME] = Recipe()
    mask: str | None = None
    dynamic: Annotated[DynamicSpec, OR_NAME] | None = None
    density: Density | None = None
    all_alive: bool = False
    shape: str | None = None
    seed: Seed | None = None
    weights: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _presets(cls, given: Any) -> Any:
        return expanded(given)

    @model_validator(mode="after")
    def _goes_together(self) -> TrainConfig:
        if self.dynamic is None:
            if self.density is not None or self.all_alive or self.shape is not None:
                raise ValueError("density, all_alive and shape need dynamic")
            if self.mask is None and self.recipe.start is not None:
                raise ValueError("start is that of kept weights: give a mask, or a method that moves masks as dynamic")
        elif self.density is None and self.shape is None:
            raise ValueError("dynamic needs density, or a shape like 2:4, which says it")
        return self

    @field_serializer("recipe", mode="wrap")
    def _with_none_as_start(self, recipe: Recipe, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A start that was refused stays refused: without a word of it, a mask's own would be taken."""
        refused = recipe.start is None and "start" in recipe.model_fields_set
        return handler(recipe) | ({"start": "none"} if refused else {})

    def with_tasks(self, change: Callable[[TaskSpec], TaskSpec]) -> Self:
        return self.model_copy(update={"task": change(self.task)})


def expanded(given: Any) -> Any:
    """The values of such a config with presets written out.

    Raises:
        ValueError: with the nearest right name, if there is no such preset.

    Examples:
        >>> from panning.jobs.train import expanded
        >>> values = expanded({"dynamic": {"name": "dpf/lenet5-fashion_mnist/short", "options": {"every": 8}}})
        >>> values["dynamic"], values["recipe"]["epochs"]
        ({'name': 'dpf', 'options': {'every': 8, 'end_at': 0.6}}, 2.0)
    """
    if not isinstance(given, Mapping):
        return given
    values = dict(given)
    if isinstance(recipe := values.get("recipe"), str):
        values["recipe"] = load_recipe(recipe).model_dump(mode="json")
    dynamic = values.get("dynamic")
    named: Any = {"name": dynamic} if isinstance(dynamic, str) else dynamic
    if isinstance(named, Mapping) and isinstance(name := named.get("name"), str) and "/" in name:
        setting = load_dynamic_preset(name)
        options = {**setting.options, **(named.get("options") or {})}
        values["dynamic"] = {**named, "name": name.partition("/")[0], "options": options}
        values.setdefault("recipe", setting.recipe.model_dump(mode="json"))
    elif isinstance(dynamic, str):
        values["dynamic"] = {"name": dynamic}
    return values


@dataclass(frozen=True)
class TrainRun:
    """A training that is about to begin, after its input was checked (``check_train``).

    Attributes:
        notes: what a user should know of mask and training together.
        identity: all that the result depends on, as JSON.
    """

    config: TrainConfig
    plan: TrainingPlan
    notes: tuple[str, ...]
    identity: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where the run goes that is given no folder."""
        plan, task = self.plan, self.config.task
        how = plan.moves.name if plan.moves is not None else "dense" if plan.first is None else "masked"
        return run_folder("train", self.identity, task.model_name, str(task.data), how, f"s{plan.seed}")


@dataclass(frozen=True)
class TrainReport:
    """A training that has ended, in its folder.

    Attributes:
        out: the run's folder.
        figures: of its record, with the history.
        columns, rows: of the table, an epoch a row.
    """

    out: Path
    figures: dict[str, Any]
    columns: list[str]
    rows: list[list[str]]


def check_train(config: TrainConfig) -> TrainRun:
    """Load what a config names.

    Raises:
        PanningError: for what is wrong with the network, the data, the mask or how it moves; nothing was written.
    """
    masks = None if config.mask is None else load_masks(config.mask)
    said = {} if masks is None else masks.manifest
    recipe, notes = config.recipe, []
    if "start" not in recipe.model_fields_set and (noted := recipe.noted(masks)).start is not None:
        recipe, text = noted, noted.start.text
        notes.append(f"the mask asks for the start {text}, and gets it: start none trains the weights as drawn")
    made_for = found if type(found := said.get("seed")) is int else None
    seed = (made_for or 0) if config.seed is None else config.seed
    started, of_weights = started_from(config, config.weights)
    task = load_task(started.task, seed, config.source)
    if masks is not None:
        check_masks_fit(task.problem.model, masks)
        if made_for not in (None, seed):
            notes.append(
                f"the mask was made for the weights of seed {made_for}, and this trains those of seed {seed}: "
                f"seed {made_for}, or no seed, trains the mask's own"
            )
        if said.get("weights") != of_weights.get("weights"):
            notes.append("the mask was made for other weights: give the file that it was made for as weights")
    plan = TrainingPlan(task, recipe, seed, masks)
    if config.dynamic is not None:
        plan = plan.moving(config.dynamic, config.density, config.all_alive, config.shape)
        if (doubt := shape_to_lose(config.dynamic.method, masks, config.shape)) is not None:
            notes.append(doubt)
    return TrainRun(config, plan, tuple(notes), _identity(config, recipe, seed, masks) | of_weights)


def _identity(config: TrainConfig, recipe: Recipe, seed: int, masks: Masks | None) -> dict[str, Any]:
    """The run's identity, with the keys that folders of earlier versions have, so that their runs go on."""
    task = config.task
    identity: dict[str, Any] = {
        "model": str(task.model), "data": str(task.data), "seed": seed, "recipe": recipe.model_dump(mode="json"),
        "mask": None if masks is None else [fingerprint(masks.layout), digest_of(masks.flat)], **said_of(task),
    }  # fmt: skip
    if (moves := config.dynamic) is not None:
        numbers = {**moves.model_dump(mode="json"), "density": config.density, "all_alive": config.all_alive}
        identity["dynamic"] = numbers | ({} if config.shape is None else {"shape": config.shape})
    return identity


def run_train(
    run: TrainRun, out: str | Path | None = None, *, listen: Listener = silent, formats: Sequence[str] = ("png",),
    should_stop: ShouldStop | None = None,
) -> TrainReport:  # fmt: skip
    """Train, or go on training, in the folder ``out`` (``train_in_folder``).

    Args:
        out: None takes ``run.folder``.
        listen: hears of each epoch.
        formats: of the picture.
        should_stop: asked after each epoch.

    Raises:
        ConfigError: if the folder holds another run.
        StoppedError: if ``should_stop`` said so; the same call goes on.
    """
    folder = run.folder if out is None else Path(out)
    with stops_when(should_stop):
        figures, columns, rows = train_in_folder(run.plan, run.identity, folder, listen, formats)
    write_atomic(folder / "config.yaml", dump_config(run.config))
    tell_artefacts(folder, listen)
    return TrainReport(folder, figures, columns, rows)
