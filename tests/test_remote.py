"""The check of configs that somebody else sends."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from panning.foundation.errors import ConfigError
from panning.foundation.packaged import packaged_configs
from panning.foundation.remote import (
    FREE,
    KNOWN,
    NESTS,
    NUMBERS,
    PLACES,
    RUNS,
    SWITCHES,
    TEXTS,
    Bounds,
    check_remote,
    shown,
)
from panning.foundation.torchvision_sizes import MILLIONS, OURS
from panning.models import MODELS
from panning.searches.kinds import KINDS, kind_of

PRUNE = {"kind": "prune", "task": {"model": "mlp", "data": "digits"}, "density": 0.1}
SEARCH = {
    "kind": "search", "name": "s", "task": {"model": "lenet5", "data": "mnist"}, "densities": [0.1], "seeds": [0, 1],
    "agent": {"seeds": [7], "n_rounds": 3, "ppo": {"n_envs": 4}}, "n_samples": 2,
    "baselines": ["snip", {"quotas": "0.3 erk + snip", "place": "balanced:lot"}],
    "rungs": [{"keep": 1, "recipe": {"epochs": 1}}], "recipe": {"epochs": 2, "start": "gain:0.7"},
}  # fmt: skip
RESNET = {"model": "torchvision:resnet50", "data": "cifar10", "label": "CIFAR-10 (JPEG)"}
BENCH = {
    "kind": "bench", "name": "g", "densities": [0.1], "seeds": [0], "controls": False,
    "tasks": [{"task": RESNET, "recipe": "a-b/short"}],
    "methods": ["erk", {"dynamic": {"name": "dpf/a-b/short", "options": {"every": 5, "distribution": "erk"}}},
                {"method": "snip", "min_density": {"fc*.weight": 0.1}}],
}  # fmt: skip
AGENT = {
    "kind": "train-agent", "env": {"tasks": [{"model": "timm:vit_tiny_patch16_224", "data": "digits"}], "densities": [0.1],
    "reward": {"alive": 1, "terms": {"mine": -2.5}, "recipe": {"epochs": 0.5}}, "action": {"indices": ["snip"]}},
}  # fmt: skip
TRAIN = {
    "kind": "train",
    "task": PRUNE["task"],
    "dynamic": "rigl",
    "density": 0.1,
    "shape": "2:4",
    "device": "auto",
    "seed": 3,
}


def changed(config: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(config)
    inner: Any = config
    *before, last = place.split(".")
    for key in before:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[int(last) if isinstance(inner, list) else last] = value
    return config


@pytest.mark.parametrize("config", [PRUNE, TRAIN, SEARCH, BENCH, AGENT], ids=lambda config: config["kind"])
def test_a_plain_config_passes(config: dict[str, Any]) -> None:
    check_remote(config)


def local(values: Any) -> bool:
    """Whether a config names a file of its own."""
    text = yaml.safe_dump(values)
    return "npz:" in text or "safetensors" in text


@pytest.mark.parametrize("name", [name for kind in RUNS for name in packaged_configs(*KINDS[kind].folders)])
def test_packaged_configs_pass_unless_they_name_files(name: str) -> None:
    path = packaged_configs(name.partition("/")[0])[name]
    values = yaml.safe_load(path.read_text())
    assert values["kind"] == kind_of(values)
    if local(values):
        with pytest.raises(ConfigError, match="must be the name of a data set|names a policy file"):
            check_remote(values)
    else:
        check_remote(values)


#: The twelve hostile requests that a plain config takes, and more of their kinds: place, value, what the refusal says.
HOSTILE = [
    (PRUNE, "task.data", "npz:/etc/shadow", "task.data: must be the name of a data set of this machine"),
    (PRUNE, "task.data", "folder:/root", "task.data: must be the name of a data set of this machine"),
    (PRUNE, "task.data", "own:tensors-012345678901", "task.data: must be the name of a data set"),
    (SEARCH, "data_root", "/srv", "data_root: names the folder of data sets on this machine: leave it out"),
    (SEARCH, "download", True, "download: fetches data sets to this machine: leave it out"),
    (SEARCH, "agent.policy", "/tmp/p.safetensors", "agent.policy: names a policy file on this machine"),
    (BENCH, "methods.1", {"policy": "p.safetensors"}, "methods.1.policy: names a policy file on this machine"),
    (PRUNE, "policy", "p", "policy: names a policy file"),
    (PRUNE, "weights", "w", "weights: names a file of weights"),
    (TRAIN, "mask", "m", "mask: names a mask file"),
    (PRUNE, "task.model", "os.path:join", "task.model: must be a model's name, torchvision:NAME or timm:NAME"),
    (PRUNE, "task.model", "timm:hf-hub:someone/net", "task.model: must be a model's name"),
    (PRUNE, "task.model", "../../net", "task.model: must be a model's name"),
    (PRUNE, "task.model", "a..b", "task.model: must be a model's name"),
    (SEARCH, "name", "../../../etc/cron.d/x", "name: must be a plain name"),
    (SEARCH, "name", "<script>alert(1)</script>", "name: must be a plain name"),
    (SEARCH, "name", "a\x1b[2Jb", "name: must be a plain name"),
    (SEARCH, "name", "a\nb", "name: must be a plain name"),
    (SEARCH, "name", "ne\u202ename", "name: must be a plain name"),
    (SEARCH, "name", "a" * 201, "name: must be a plain name"),
    (PRUNE, "task.label", "<img src=x>", "task.label: must be a short text"),
    (TRAIN, "dynamic", "../dpf/short", "dynamic: must be a name, or a preset as MODEL-DATA/FORM"),
    (TRAIN, "recipe", "/etc/passwd", "recipe: must be a name, or a preset"),
    (TRAIN, "device", "cuda:3", "device: must be auto or cpu"),
    (SEARCH, "n_samples", 10**12, "n_samples: must be from 0 to 2000 (given: 1000000000000)"),
    (SEARCH, "recipe.epochs", 10**9, "recipe.epochs: must be from 0 to 1000 (given: 1000000000)"),
    (SEARCH, "rungs.0.recipe.epochs", 1e300, "rungs.0.recipe.epochs: must be from 0 to 1000 (given: 1e+300)"),
    (SEARCH, "agent.ppo.n_envs", 10**6, "agent.ppo.n_envs: must be from 1 to 64 (given: 1000000)"),
    (SEARCH, "seeds", list(range(10**5)), "seeds: must have at most 100 items (given: 100000)"),
    (SEARCH, "seeds.1", 2**70, "seeds.1: must be from"),
    (SEARCH, "seeds.1", 10**400, "9.22337203685e+18 (given: a number of 1329 bits)"),
    (SEARCH, "densities.0", float("nan"), "densities.0: must be a finite number"),
    (SEARCH, "task.model", "torchvision:vit_h_14", "has 633.5 million parameters, at most 100 million are taken"),
    (SEARCH, "task.model", "vit_h_14", "task.model: vit_h_14 has 633.5 million parameters"),
    (SEARCH, "task.n_train", 10**12, "task.n_train: must be from 1 to 100000000"),
    (SEARCH, "n_samples", True, "n_samples: must not be true or false"),
    (SEARCH, "n_samples", "2", "n_samples: must be no text"),
    (SEARCH, "task", 3, "task: must be no number"),
    (SEARCH, "seeds", {"a": 1}, "seeds: must have no keys of its own"),
    (SEARCH, "name", b"x", "name: must be a text, a number, a list or keys with values (given: bytes)"),
    (PRUNE, "min_density", {"../x": 0.1}, "min_density: has the key '../x', which must be a pattern of names"),
    (TRAIN, "dynamic", {"name": "rigl", "options": {"a b": 1}}, "dynamic.options: has the key 'a b'"),
    (PRUNE, "__class__", "x", "'__class__': is no field of a config"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "place", "value", "said"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_value_is_refused_by_a_sentence_that_names_its_field(
    config: dict[str, Any], place: str, value: Any, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_remote(changed(config, place, value))
    text = str(caught.value)
    assert "with 1 error(s):\n" in text and said in text
    assert text.isprintable() or text.replace("\n", "").isprintable()
    assert not set("<>\x1b\u202e") & set(text)


def test_all_errors_come_at_once_and_no_more_than_a_page() -> None:
    with pytest.raises(ConfigError) as caught:
        check_remote({"kind": "prune", "policy": "p", "density": 2, "name": "/"})
    assert str(caught.value).splitlines()[0] == "This config is refused, with 3 error(s):"
    with pytest.raises(ConfigError) as caught:
        check_remote({"kind": "prune", **{f"a{n}": 1 for n in range(1000)}})
    assert len(str(caught.value).splitlines()) == 21


@pytest.mark.parametrize("values", [None, 3, "kind: prune", [], {}, {"kind": "recipe"}, {"kind": ["prune"]}])
def test_what_is_no_config_of_a_run_is_refused(values: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"\(top level\)|kind: must be one of prune, train, search, train-agent, bench"
    ):
        check_remote(values)


def test_depth_and_size_are_bounded() -> None:
    deep: Any = 1
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(ConfigError, match="nested too deeply"):
        check_remote({**SEARCH, "seeds": deep})
    wide = {**SEARCH, "rungs": [{"recipe": {"milestones": [0.5] * 200}}] * 20}
    check_remote({**wide, "rungs": wide["rungs"][:20]})
    with pytest.raises(ConfigError, match="too many values"):
        check_remote({**BENCH, "tasks": [{"short": [{"milestones": [0.5] * 200}]}] * 50})


def test_bounds_are_the_operators() -> None:
    bounds = Bounds(numbers={"n_samples": (0, 10**12)}, items={"seeds": 2}, million_parameters=700)
    check_remote({**SEARCH, "n_samples": 10**12, "task": {"model": "vit_h_14", "data": "digits"}}, bounds)
    with pytest.raises(ConfigError, match="seeds: must have at most 2 items"):
        check_remote({**SEARCH, "seeds": [0, 1, 2]}, bounds)


def test_uploads_and_policies_by_name_are_for_those_that_have_them() -> None:
    sent = "upload:" + "0a" * 32
    train = {"kind": "train", "task": {"model": sent, "data": sent}, "mask": sent, "weights": sent}
    prune = {"kind": "prune", "task": {"model": "mlp", "data": "digits"}, "policy": "digits"}
    for config, n in ((train, 4), (prune, 1), ({**prune, "policy": sent}, 1)):
        check_remote(config, Bounds(uploads=True))
        with pytest.raises(ConfigError, match=rf"with {n} error"):
            check_remote(config)
    for wrong in (
        sent[:-1],
        sent + "0",
        sent.upper(),
        "upload:../x",
        sent + "\n",
        "../digits",
        "/etc/x",
        ".",
        "a" * 81,
    ):
        with pytest.raises(ConfigError, match="policy: names a policy file"):
            check_remote({**prune, "policy": wrong}, Bounds(uploads=True))
    for field in ("method", "device", "label", "data_root"):
        with pytest.raises(ConfigError, match=f"{field}: "):
            check_remote({**prune, field: sent}, Bounds(uploads=True))


# --- the tables against the configs ---


def fields_of(schema: dict[str, Any]) -> dict[str, set[str]]:
    """Field -> the types that a schema lets its values and the items of its lists have."""
    found: dict[str, set[str]] = {}

    def types(part: dict[str, Any]) -> set[str]:
        inner = [*part.get("anyOf", []), *part.get("oneOf", []), *part.get("prefixItems", [])]
        inner += [part[key] for key in ("items", "additionalProperties") if isinstance(part.get(key), dict)]
        own = {"object"} if "$ref" in part else {part["type"]} if "type" in part else set()
        return own.union(*map(types, inner)) if inner else own

    def inside(part: Any) -> list[dict[str, Any]]:
        """The schemas with properties, wherever they stand."""
        if not isinstance(part, dict | list):
            return []
        found = [inner for value in (part.values() if isinstance(part, dict) else part) for inner in inside(value)]
        return found + ([part] if isinstance(part, dict) and isinstance(part.get("properties"), dict) else [])

    for one in inside(schema):
        for name, part in one.get("properties", {}).items():
            found.setdefault(name, set()).update(types(part))
    return found


def test_every_field_of_every_run_is_in_the_tables() -> None:
    """A field that is added must be told here what it may hold."""
    every: dict[str, set[str]] = {}
    for kind in RUNS:
        for name, types in fields_of(KINDS[kind].model.model_json_schema()).items():
            every.setdefault(name, set()).update(types)
    assert set(every) == KNOWN
    texts = {name for name, types in every.items() if "string" in types}
    assert texts <= {*TEXTS, *PLACES} and set(PLACES) <= texts
    numbers = {name for name, types in every.items() if types & {"integer", "number"}}
    assert numbers <= set(NUMBERS) and set(NUMBERS) - numbers <= FREE
    switches = {name for name, types in every.items() if "boolean" in types}
    assert switches <= SWITCHES and SWITCHES - switches <= FREE
    assert {name for name, types in every.items() if "object" in types} <= NESTS | FREE


def test_the_sizes_are_torchvisions_own() -> None:
    torchvision = pytest.importorskip("torchvision")
    for name in torchvision.models.list_models(module=torchvision.models):
        largest = max(weights.meta["num_params"] for weights in torchvision.models.get_model_weights(name))
        assert largest / 1e6 <= MILLIONS[name] < largest / 1e6 + 0.11
    assert set(MODELS) & set(MILLIONS) == OURS


def test_the_check_needs_neither_torch_nor_the_tables() -> None:
    code = "import sys; from panning import check_remote; check_remote(%r); print(*sys.modules)" % SEARCH  # noqa: UP031
    shown_modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "pydantic", "torchvision", "panning.pruners", "panning.tasks"} & set(shown_modules)
    assert "panning.foundation.remote" in shown_modules


# --- anything at all ---

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(sorted(KNOWN)) | st.text() | st.integers(), inner),
    max_leaves=20,
)


@given(st.sampled_from(RUNS), st.dictionaries(st.sampled_from(sorted(KNOWN)), anything))
def test_whatever_is_sent_passes_or_is_refused_by_lines_that_are_safe_to_show(
    kind: str, values: dict[str, Any]
) -> None:
    try:
        check_remote({**values, "kind": kind})
    except ConfigError as refusal:
        assert all(line.isprintable() and line.isascii() and "<" not in line for line in str(refusal).splitlines())
    else:
        texts = list(texts_of({**values, "kind": kind}))
        assert not [text for text in texts if ".." in text or text.startswith(("/", "~")) or not text.isascii()]


def texts_of(value: Any) -> Any:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts_of(key)
            yield from texts_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts_of(item)


def test_a_value_is_shown_short_and_plain() -> None:
    assert shown("a" * 100) == "'" + "a" * 60 + "'..."
    assert (shown(None), shown(True), shown(1.5), shown({}), shown(Path("x"))) == (
        "null",
        "true",
        "1.5",
        "dict",
        "PosixPath",
    )
