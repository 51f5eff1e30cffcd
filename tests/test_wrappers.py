"""Networks inside wrappers, and names with prefixes: every function takes both, and names what the user named."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import prune as torch_prune
from torch.optim.swa_utils import AveragedModel

import panning
from panning.foundation.errors import MaskError
from panning.foundation.wrappers import matching, own_names, own_parameters, prefix_of, unwrapped
from panning.masks.convert import FORMATS, read_any, write_as
from panning.masks.file import fingerprint
from panning.masks.torch_forms import as_prune, from_prune

NAMES = ("0.weight", "2.weight")


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


class Holder(nn.Module):
    """A wrapper that no table has, as trainers make them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any) -> Any:
        return self.module(*args)


@pytest.fixture(scope="module", autouse=True)
def _one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("ranks") / "store"), 1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def distributed(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bare": lambda model: model,
    "compiled": compiled,
    "data parallel": nn.DataParallel,
    "distributed": distributed,
    "averaged": AveragedModel,
    "a class of one's own": Holder,
    "compiled in distributed": lambda model: distributed(compiled(model)),
    "distributed in compiled": lambda model: compiled(distributed(model)),
    "distributed in one's own": lambda model: Holder(distributed(compiled(model))),
    "checkpointed": checkpoint_wrapper,
}
RUN_AS_THEY_ARE = [name for name in WRAPPED if name != "distributed in one's own"]


@pytest.mark.parametrize("name", WRAPPED)
def test_parameters_have_the_names_of_the_network_inside(name: str) -> None:
    model = WRAPPED[name](net())
    assert list(own_parameters(model)) == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("name", RUN_AS_THEY_ARE)
def test_the_same_mask_whatever_is_around_the_network(name: str) -> None:
    batch = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3
    for method in ("snip", "synflow"):
        plain = panning.prune(net(), batch, density=0.3, method=method)
        masks = panning.prune(WRAPPED[name](net()), batch, density=0.3, method=method)
        assert masks == plain and tuple(masks) == NAMES and masks.manifest == plain.manifest
        assert fingerprint(masks.layout) == fingerprint(plain.layout)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."])
@pytest.mark.parametrize("name", WRAPPED)
def test_every_function_takes_every_prefix_on_every_wrapper(name: str, prefix: str) -> None:
    plain = panning.prune(net(), density=0.4, method="magnitude", input_shape=(6,))
    masks = plain.renamed({own: prefix + own for own in plain})

    def n_left(model: nn.Module) -> int:
        return sum(int(parameter.count_nonzero()) for key, parameter in model.named_parameters() if "weight" in key)

    model = WRAPPED[name](net())
    panning.apply_masks(model, masks)
    assert n_left(model) == plain.n_kept
    model = WRAPPED[name](net())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with panning.enforce_masks(model, masks, optimizer):
        assert n_left(model) == plain.n_kept
    if name in RUN_AS_THEY_ARE:
        assert masks.effective_density(WRAPPED[name](net())) == plain.effective_density(net())
        small, of_plain = (panning.compact(m, k) for m, k in ((WRAPPED[name](net()), masks), (net(), plain)))
        assert torch.equal(small.model(torch.ones(2, 6)), of_plain.model(torch.ones(2, 6)))
        model = WRAPPED[name](net())
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        moving = panning.move_masks(model, optimizer, "rigl", density=plain.density, n_steps=200, masks=masks)
        assert tuple(moving.finish()) == NAMES
    assert masks.overlap(plain) == 1.0


def test_prefixes_in_the_middle_and_names_that_only_look_like_prefixes() -> None:
    model = net()
    model[0] = compiled(model[0])
    assert list(own_parameters(model)) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    masks = panning.prune(net(), density=0.4, method="magnitude", input_shape=(6,))
    panning.apply_masks(model, masks.renamed({"0.weight": "module.0._orig_mod.weight", "2.weight": "module.2.weight"}))
    assert int(model[2].weight.count_nonzero()) == int(masks["2.weight"].sum())

    residual = nn.Sequential(Holder(nn.Linear(4, 4)), nn.Linear(4, 2))  # not at the top: an ordinary class
    assert list(own_parameters(residual)) == ["0.module.weight", "0.module.bias", "1.weight", "1.bias"]
    assert tuple(panning.prune(residual, density=0.5, input_shape=(4,))) == ("0.module.weight", "1.weight")
    assert unwrapped(residual) is residual and unwrapped(Holder(residual)) is not residual

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.head = nn.Linear(2, 2), nn.Linear(2, 2)

    assert list(own_parameters(Two())) == ["module.weight", "module.bias", "head.weight", "head.bias"]
    assert set(own_names(nn.DataParallel(Two())).values()) == set(own_parameters(Two()))
    known = list(own_parameters(Two()))
    given = {f"module.{name}": name for name in known}
    assert matching(given, known) == given  # one prefix off, not two
    assert matching(["weight"], ["module.weight"]) == {"weight": "module.weight"}
    assert matching(["module.a", "a"], ["a"]) is None


def test_what_fits_neither_way_is_refused_and_the_prefix_is_named() -> None:
    masks = panning.Masks.from_tensors({"module.0.weight": torch.ones(8, 6), "module.3.weight": torch.ones(3, 8)})
    model = net()
    with pytest.raises(MaskError, match=r"(?s)module.3.weight.*'module\.', the prefix of a wrapper.*do not fit either"):
        panning.apply_masks(model, masks)
    wrong_shape = panning.Masks.from_tensors({"module.0.weight": torch.ones(6, 8)})
    with pytest.raises(MaskError, match=r"module.0.weight: \(6, 8\) in the mask, \(8, 6\) in the model"):
        panning.enforce_masks(model, wrong_shape, torch.optim.SGD(model.parameters(), 0.1))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_files_of_others_are_read_without_the_prefix(prefix: str, tmp_path: Path) -> None:
    old = net()
    for layer in (old[0], old[2]):
        torch_prune.random_unstructured(layer, "weight", amount=0.5)
    torch.save({prefix + name: tensor for name, tensor in old.state_dict().items()}, tmp_path / "checkpoint.pth")
    masks = read_any(tmp_path / "checkpoint.pth")
    assert masks == from_prune(old) and tuple(masks) == NAMES
    for form in FORMATS:
        write_as(masks.renamed({name: prefix + name for name in masks}), tmp_path / form, form)
        read = read_any(tmp_path / form)
        assert masks.overlap(read) == 1.0
        panning.apply_masks(net(), read)


def test_the_form_of_torch_inside_a_wrapper() -> None:
    masks = panning.prune(net(), density=0.4, method="magnitude", input_shape=(6,))
    for name in ("bare", "compiled", "data parallel", "distributed in compiled", "a class of one's own"):
        model = WRAPPED[name](net())
        as_prune(model, masks)
        assert from_prune(model) == masks, name


def test_a_wrapper_of_ones_own_is_run_not_taken_off() -> None:
    class Twice(Holder):
        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)[:, :2]

    batch = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 2
    masks = panning.prune(Twice(net()), batch, density=0.4, method="snip")
    assert tuple(masks) == NAMES and not masks["2.weight"][2].any()  # the third output is not read


def test_prefixes_of_names() -> None:
    assert prefix_of(["module._orig_mod.a", "module._orig_mod.b.c"]) == "module._orig_mod."
    assert prefix_of(["module.a", "b"]) == prefix_of([]) == ""
