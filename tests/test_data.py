"""Data: exact splits, statistics and batches; archives and folders that are broken or hostile."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from panning.data import (
    DATASETS,
    FolderSplit,
    ImageData,
    InMemorySplit,
    Split,
    augment_batch,
    balanced_batch,
    data_names,
    folder,
    load_data,
    npz,
)
from panning.data.image_data import channel_statistics
from panning.data.splits import count_classes, stratified_holdout, stratified_order
from panning.foundation.errors import DataError, UnknownNameError


@pytest.fixture(autouse=True)
def no_data_folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("data") is None:
        monkeypatch.delenv("PANNING_DATA", raising=False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(split: Split) -> list[bytes]:
    """Every image with its label, as bytes that can be compared and put into sets."""
    images = split.images(torch.arange(len(split)))
    return [
        bytes(image.flatten().tolist()) + bytes([label])
        for image, label in zip(images, split.labels.tolist(), strict=True)
    ]


# Digits


def test_digits_split_sizes_are_exact() -> None:
    data = load_data("digits")
    test = data.test_split()
    assert (len(data.train), len(data.validation), len(test)) == (1151, 287, 359)
    # 178, 182, 177, 183, 181, 182, 181, 179, 174, 180 images: a fifth of each class, then a fifth of the rest
    assert test.labels.bincount().tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert data.validation.labels.bincount().tolist() == [28, 29, 28, 29, 29, 29, 29, 29, 28, 29]
    assert (data.n_classes, data.input_shape, data.augmentation) == (10, (1, 8, 8), "none")
    assert (data.name, data.label) == ("digits", "Digits")


def test_digits_parts_together_are_the_digits_with_exact_grey_levels() -> None:
    data = load_data("digits")
    bunch = load_digits()
    expected = [
        bytes(round(value * 255 / 16) for value in image.ravel()) + bytes([label])
        for image, label in zip(bunch.images, bunch.target, strict=True)
    ]
    found = [row for split in (data.train, data.validation, data.test_split()) for row in rows(split)]
    assert sorted(found) == sorted(expected)


def test_splits_do_not_depend_on_random_state() -> None:
    torch.manual_seed(1)
    first = load_data("digits")
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = load_data("digits")
    assert torch.equal(torch.get_rng_state(), before)
    assert rows(first.train) == rows(second.train) and rows(first.test_split()) == rows(second.test_split())


def test_n_train_keeps_nested_balanced_subsets() -> None:
    full, large, small = (load_data("digits", n_train=n) for n in (None, 200, 50))
    assert len(large.train) == 200 and len(small.train) == 50
    assert set(rows(small.train)) <= set(rows(large.train)) <= set(rows(full.train))
    assert rows(small.validation) == rows(full.validation)
    counts = large.train.labels.bincount(minlength=10)
    assert counts.min() >= 18 and counts.max() <= 22
    assert load_data("digits", n_train=10).train.labels.sort().values.tolist() == list(range(10))


@pytest.mark.parametrize("n_train", [0, 9, 1152, -5])
def test_n_train_out_of_range(n_train: int) -> None:
    with pytest.raises(DataError, match=r"allowed is 10\.\.1151"):
        load_data("digits", n_train=n_train)


# Splits


def test_holdout_takes_exact_shares_and_keeps_rare_classes() -> None:
    labels = torch.tensor([0] * 25 + [1] * 10 + [2] * 2 + [3])
    rest, held = stratified_holdout(labels, 0.1, generator())
    assert labels[held].bincount(minlength=4).tolist() == [3, 1, 1, 0]  # 2.5 is rounded up
    assert torch.cat([rest, held]).sort().values.tolist() == list(range(38))
    assert rest.tolist() == sorted(rest.tolist()) and held.tolist() == sorted(held.tolist())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 5))
def test_prefixes_of_the_order_have_the_shares_of_the_whole(counts: list[int], seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    order = stratified_order(labels, generator(seed))
    assert order.sort().values.tolist() == list(range(len(labels)))
    assert sorted(labels[order[: len(counts)]].tolist()) == list(range(len(counts)))
    for n in range(len(counts), len(labels) + 1):
        found = labels[order[:n]].bincount(minlength=len(counts))
        # one for where a class stands within its rank, one for every class that was moved to the front
        assert (found - torch.tensor(counts) * n / len(labels)).abs().max() <= 2 + len(counts)


@pytest.mark.parametrize(
    ("labels", "message"), [([0, 2], "without a gap"), ([1, 2], "0..1"), ([-1, 0], "-1..0"), ([], "no images")]
)
def test_labels_must_be_contiguous(labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        count_classes(torch.tensor(labels, dtype=torch.int64), "x")


def test_a_huge_label_costs_no_memory() -> None:
    with pytest.raises(DataError, match="2 different labels in 0..4611686018427387904"):
        count_classes(torch.tensor([0, 2**62]), "x")


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 1, 2, 2), torch.zeros(2, 2, 2).byte(), torch.zeros(3, 1, 2, 2).byte()]
)
def test_in_memory_split_refuses_other_tensors(images: Tensor) -> None:
    with pytest.raises(DataError, match="uint8"):
        InMemorySplit(images, torch.zeros(2, dtype=torch.int64))


# Batches


def toy(counts: tuple[int, ...] = (5, 3, 1)) -> ImageData:
    """Images [n, 2, 2, 2] of which the first pixel is the image's number; channel 1 is constant."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator(9))]
    images = torch.full((len(labels), 2, 2, 2), 51, dtype=torch.uint8)
    images[:, 0] = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1)
    split = InMemorySplit(images, labels)
    mean, std = channel_statistics(split)
    return ImageData("toy", "Toy", split, split, len(counts), (2, 2, 2), mean, std, "none", lambda: split)


def test_statistics_are_exact_and_never_zero() -> None:
    data = toy()
    values = np.arange(9) / 255
    assert data.mean == pytest.approx((values.mean(), 0.2), rel=1e-12)
    assert data.std == pytest.approx((values.std(), 1 / 255), rel=1e-12)


def test_batch_is_normalised_and_ordered() -> None:
    data = toy()
    inputs, labels = data.batch(data.train, torch.tensor([7, 0, 7]))
    expected = (torch.tensor([7.0, 0.0, 7.0]) / 255 - data.mean[0]) / data.std[0]
    assert inputs.dtype == torch.float32 and inputs.shape == (3, 2, 2, 2) and labels.dtype == torch.int64
    torch.testing.assert_close(inputs[:, 0, 1, 1], expected)
    torch.testing.assert_close(inputs[:, 1], torch.zeros(3, 2, 2))
    assert labels.tolist() == data.train.labels[[7, 0, 7]].tolist()


def test_whole_train_part_is_normalised_to_zero_mean_and_unit_deviation() -> None:
    data = load_data("digits")
    inputs, _ = data.batch(data.train, torch.arange(len(data.train)))
    assert float(inputs.mean()) == pytest.approx(0, abs=1e-5)
    assert float(inputs.std(correction=0)) == pytest.approx(1, abs=1e-5)


def numbers(data: ImageData, inputs: Tensor) -> list[int]:
    return ((inputs[:, 0, 0, 0] * data.std[0] + data.mean[0]) * 255).round().int().tolist()


def test_balanced_batch_draws_without_replacement_sorted_by_class() -> None:
    data = toy()
    inputs, labels = balanced_batch(data, data.train, 3, generator())
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    drawn = numbers(data, inputs)
    assert [int(data.train.labels[number]) for number in drawn] == labels.tolist()
    assert len(set(drawn[:3])) == 3 and len(set(drawn[3:6])) == 3
    assert len(set(drawn[6:])) == 1  # only a class that is too small is drawn from twice


def test_balanced_batch_follows_the_generator() -> None:
    data = load_data("digits")
    first, again, other = (balanced_batch(data, data.train, 5, generator(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    ongoing = generator()
    assert not torch.equal(*(balanced_batch(data, data.train, 5, ongoing)[0] for _ in range(2)))


def test_balanced_batch_draws_every_image_equally_often() -> None:
    data, source = toy((4, 4)), generator()
    counts = torch.zeros(8)
    for _ in range(500):
        counts[numbers(data, balanced_batch(data, data.train, 1, source)[0])] += 1
    assert counts.min() > 80 and counts.max() < 170  # 125 expected, deviation 9.7


def test_balanced_batch_refuses() -> None:
    data = toy()
    with pytest.raises(DataError, match="per_class is 0"):
        balanced_batch(data, data.train, 0, generator())
    with pytest.raises(DataError, match="class 3 has no image"):
        balanced_batch(replace(data, n_classes=4), data.train, 1, generator())


def test_test_part_must_match_the_train_part() -> None:
    other = InMemorySplit(torch.zeros(1, 2, 3, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(DataError, match=r"\(2, 3, 3\)"):
        replace(toy(), load_test=lambda: other).test_split()
    with pytest.raises(DataError, match=r"0\.\.1"):
        replace(toy(), n_classes=2).test_split()


def test_data_can_be_sent_to_another_process() -> None:
    data = load_data("digits", n_train=20)
    copied = pickle.loads(pickle.dumps(data))
    assert rows(copied.train) == rows(data.train) and len(copied.test_split()) == 359
    assert len(pickle.dumps(data.train)) < 20 * 64 + 2000  # a subset does not carry what it was cut from


# Augmentation


def test_crop_flip_gives_crops_of_the_padded_image() -> None:
    image = torch.arange(1.0, 1 + 2 * 5 * 6).view(1, 2, 5, 6)
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))[0]
    crops = {}
    for top in range(9):
        for left in range(9):
            crop = padded[:, top : top + 5, left : left + 6]
            for flip, candidate in ((False, crop), (True, crop.flip(2))):
                crops[tuple(candidate.flatten().tolist())] = (top, left, flip)
    inputs = image.repeat(3000, 1, 1, 1)
    augmented = augment_batch(inputs, "crop_flip", generator())
    assert augmented.shape == inputs.shape and augmented.is_contiguous()
    found = [crops[tuple(row.flatten().tolist())] for row in augmented]  # KeyError: not such a crop
    assert {top for top, _, _ in found} == {left for _, left, _ in found} == set(range(9))
    assert 0.45 < sum(flip for _, _, flip in found) / 3000 < 0.55
    assert len({(top, left) for top, left, _ in found}) == 81  # rows and columns are drawn independently


def test_augmentation_is_a_function_of_the_generator_and_leaves_the_inputs() -> None:
    inputs = torch.randn(16, 3, 8, 8, generator=generator(5))
    kept = inputs.clone()
    first, again, other = (augment_batch(inputs, "crop_flip", generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other) and torch.equal(inputs, kept)


def test_no_augmentation_draws_nothing() -> None:
    source, inputs = generator(), torch.ones(2, 1, 4, 4)
    before = source.get_state()
    assert augment_batch(inputs, "none", source) is inputs and torch.equal(source.get_state(), before)
    with pytest.raises(UnknownNameError, match="crop_flip"):
        augment_batch(inputs, "cropflip", source)


# Names


def test_names() -> None:
    assert data_names() == list(DATASETS)
    assert set(DATASETS) >= {"digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100"}
    assert {name for name, row in DATASETS.items() if row.augmentation == "crop_flip"} >= {"cifar10", "cifar100"}


@pytest.mark.parametrize(("name", "near"), [("fashionmnist", "fashion_mnist"), ("digit", "digits"), ("zip:x", None)])
def test_unknown_names(name: str, near: str | None) -> None:
    with pytest.raises(UnknownNameError, match="folder:PATH.*npz:PATH") as caught:
        load_data(name)
    assert near is None or f"Did you mean '{near}'" in str(caught.value)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100"])
def test_absent_data_say_what_to_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="--data-root.*PANNING_DATA.*--download"):
        load_data(name)
    monkeypatch.setenv("PANNING_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load_data(name)
    assert all(part in str(caught.value) for part in (str(tmp_path), "--data-root", "PANNING_DATA", "--download"))
    assert list(tmp_path.iterdir()) == []  # looking does not create anything


def test_broken_torchvision_files_are_a_data_error(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").write_bytes(b"\x00\x00\x08\x03broken")
    with pytest.raises(DataError, match="MNIST cannot be read from"):
        load_data("mnist", root=tmp_path)


# NumPy archives

Arrays = dict[str, np.ndarray]


def arrays(n: int = 30, shape: tuple[int, ...] = (6, 5), with_val: bool = False) -> Arrays:
    rng = np.random.default_rng(0)
    made: Arrays = {}
    for part in ("train", "test", *(["val"] if with_val else [])):
        made[f"{part}_images"] = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        made[f"{part}_labels"] = np.arange(n, dtype=np.uint8) % 3
    return made


def save(path: Path, made: Arrays) -> str:
    np.savez_compressed(path, **made)  # type: ignore[arg-type]
    return f"npz:{path}"


def npy_bytes(claim: str, data: bytes = b"") -> bytes:
    """An array file whose header says ``claim``, whatever the data are."""
    header = claim.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def save_with(path: Path, key: str, member: bytes) -> str:
    """A good archive of which one member has other bytes."""
    made = arrays()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in made.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", member if name == key else buffer.getvalue())
    return f"npz:{path}"


def test_npz_grey(tmp_path: Path) -> None:
    made = arrays()
    data = load_data(save(tmp_path / "toy.set.npz", made))
    assert (data.label, data.n_classes, data.input_shape, data.augmentation) == ("toy.set", 3, (1, 6, 5), "none")
    assert (len(data.train), len(data.validation), len(data.test_split())) == (27, 3, 30)
    test = data.test_split()
    assert torch.equal(test.images(torch.arange(30))[:, 0], torch.from_numpy(made["test_images"]))
    expected = [
        bytes(i.ravel().tolist()) + bytes([y]) for i, y in zip(made["train_images"], made["train_labels"], strict=True)
    ]
    assert sorted(rows(data.train) + rows(data.validation)) == sorted(expected)


def test_npz_colour_with_validation_and_column_labels(tmp_path: Path) -> None:
    made = arrays(shape=(6, 5, 3), with_val=True)
    made["train_labels"] = made["train_labels"].astype(">i8").reshape(-1, 1)
    made["train_images"] = np.asfortranarray(made["train_images"])
    data = load_data(save(tmp_path / "x.npz", made))
    assert data.input_shape == (3, 6, 5) and data.augmentation == "crop_flip"
    assert len(data.train) == len(data.validation) == 30
    images = data.train.images(torch.tensor([4]))
    assert torch.equal(images[0].permute(1, 2, 0), torch.from_numpy(made["train_images"][4].copy()))
    assert data.train.labels.tolist() == made["train_labels"].ravel().tolist()


def test_npz_path_is_looked_up_here_then_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, root = tmp_path / "here", tmp_path / "root"
    here.mkdir()
    root.mkdir()
    monkeypatch.chdir(here)
    save(root / "x.npz", arrays(30))
    assert len(load_data("npz:x.npz", root=root).test_split()) == 30
    save(here / "x.npz", arrays(60))
    assert len(load_data("npz:x.npz", root=root).test_split()) == 60
    with pytest.raises(DataError, match=r"looked at 'y\.npz' and '.*root/y\.npz'"):
        load_data("npz:y.npz", root=root)


def test_npz_test_data_are_read_when_asked_for(tmp_path: Path) -> None:
    data = load_data(save(tmp_path / "x.npz", arrays()))
    (tmp_path / "x.npz").unlink()
    with pytest.raises(DataError, match="x.npz"):
        data.test_split()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("test_labels"), r"no array 'test_labels'; found: test_images, train_images"),
        (lambda a: a.update(val_images=a["test_images"]), "no array 'val_labels'"),
        (lambda a: a.update(train_images=a["train_images"].astype(np.float32)), r"float32.*allowed is uint8"),
        (lambda a: a.update(train_images=a["train_images"][:, 0]), r"train_images is uint8 \[30, 5\]"),
        (lambda a: a.update(test_images=a["test_images"][:, :5]), r"test_images are \(5, 5\)"),
        (lambda a: a.update(test_images=a["test_images"][:-1]), "has 29 entries, but test_labels 30"),
        (lambda a: a.update(train_images=np.zeros((30, 3, 6, 5), np.uint8)), "5 channels.*come last"),
        (lambda a: a.update(train_labels=np.zeros(30)), r"train_labels is float64"),
        (lambda a: a.update(train_labels=np.zeros((30, 14), int)), r"\[30, 14\]; allowed is an integer array"),
        (lambda a: a.update(train_labels=np.int64(3)), r"train_labels is int64 \[\]"),
        (lambda a: a.update(train_labels=np.arange(30) % 3 - 1), r"in -1\.\.1"),
        (lambda a: a.update(train_labels=np.arange(30) % 3 * 2), "without a gap"),
        (lambda a: a.update(train_labels=np.full(30, 2**63, np.uint64)), "9223372036854775808"),
        (lambda a: a.update(train_images=a["train_images"][:0], train_labels=a["train_labels"][:0]), "at least 1"),
        (lambda a: a.update(train_labels=np.array([{}] * 30, dtype=object)), "pickled Python objects"),
    ],
)
def test_npz_with_wrong_content(tmp_path: Path, change: Callable[[Arrays], object], message: str) -> None:
    made = arrays()
    change(made)
    with pytest.raises(DataError, match=message) as caught:
        load_data(save(tmp_path / "x.npz", made))
    assert "x" in str(caught.value)


def test_npz_labels_of_other_parts_are_checked(tmp_path: Path) -> None:
    made = arrays(with_val=True)
    made["val_labels"] = made["val_labels"] + 1
    with pytest.raises(DataError, match=r"validation part of x: labels lie in 1\.\.3"):
        load_data(save(tmp_path / "x.npz", made))
    made = arrays()
    made["test_labels"] = made["test_labels"] + 1
    with pytest.raises(DataError, match=r"test part of x: labels lie in 1\.\.3"):
        load_data(save(tmp_path / "x.npz", made)).test_split()


class Bomb:
    """Unpickling this would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("key", ["train_images", "train_labels", "test_images", "extra"])
def test_npz_is_never_unpickled(tmp_path: Path, key: str) -> None:
    made = arrays()
    made[key] = np.array([Bomb(tmp_path / "touched")] * 30, dtype=object)
    name = save(tmp_path / "x.npz", made)
    if key == "extra":
        load_data(name)  # what is not needed is not read
    else:
        with pytest.raises(DataError, match=f"'{key}' holds pickled"):
            load_data(name)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (
            "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000, 1000), }",
            "claims uint8.*bytes are stored",
        ),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -6, 5), }", "at least 1"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (30, 6, 5.0), }", "not a NumPy array"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (True, 6, 5), }", "not a NumPy|bytes are stored"),
        ("{'descr': '|u1', 'fortran_order': False}", "not a NumPy array"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (30, 6, 5), }", "pickled"),
        ("__import__('os').abort()", "not a NumPy array"),
        ("(" * 5000, "not a NumPy array"),
    ],
)
def test_npz_headers_that_lie(tmp_path: Path, claim: str, message: str) -> None:
    name = save_with(tmp_path / "x.npz", "train_images", npy_bytes(claim, bytes(30 * 6 * 5)))
    with pytest.raises(DataError, match=message) as caught:
        load_data(name)
    assert "x.npz" in str(caught.value) and "train_images" in str(caught.value)


@pytest.mark.parametrize("member", [b"", b"\x93NUMPY", b"\x93NUMPY\x09\x00\x00\x00", b"GIF89a", b"\x80\x04."])
def test_npz_members_that_are_no_arrays(tmp_path: Path, member: bytes) -> None:
    with pytest.raises(DataError, match="'test_labels' is not a NumPy array"):
        load_data(save_with(tmp_path / "x.npz", "test_labels", member))


def test_npz_that_unpacks_to_more_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = save(tmp_path / "x.npz", arrays() | {"padding": np.zeros(10**6)})
    assert os.path.getsize(tmp_path / "x.npz") < 10**5
    monkeypatch.setattr(npz, "MAX_NPZ_BYTES", 10**6)
    with pytest.raises(DataError, match="unpacks to 80.* at most 1000000"):
        load_data(name)


def test_npz_directory_that_understates_a_member(tmp_path: Path) -> None:
    """The zip directory says 4,000 bytes, the stream holds 50 MB: no more than was said is unpacked."""
    claim = "{'descr': '|u1', 'fortran_order': False, 'shape': (50, 1000, 1000), }"
    path = tmp_path / "x.npz"
    name = save_with(path, "train_images", npy_bytes(claim, bytes(50 * 10**6)))
    raw = bytearray(path.read_bytes())
    real = zipfile.ZipFile(path).getinfo("train_images.npy").file_size
    raw = bytearray(bytes(raw).replace(real.to_bytes(4, "little"), (4000).to_bytes(4, "little")))
    path.write_bytes(raw)
    with pytest.raises(DataError, match="x.npz"):
        load_data(name)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_npz_is_a_data_error_or_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Cut off anywhere, or with any byte changed: never another exception, never other pixels without a word."""
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    save(path, arrays())
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(good[:at])
    else:
        path.write_bytes(good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :])
    try:
        loaded = load_data(f"npz:{path}")
        test = loaded.test_split()
    except DataError as error:
        assert "damaged" in str(error)
        return
    path.write_bytes(good)
    expected = load_data(f"npz:{path}")
    assert rows(loaded.train) == rows(expected.train) and rows(test) == rows(expected.test_split())


def test_not_a_zip(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"hello")
    with pytest.raises(DataError, match="x.npz is not a complete .npz"):
        load_data(f"npz:{tmp_path / 'x.npz'}")
    np.save(tmp_path / "y.npy", np.zeros(3))
    with pytest.raises(DataError, match="y.npy is not a complete .npz"):
        load_data(f"npz:{tmp_path / 'y.npy'}")


# Folders


def paint(path: Path, level: int, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode == "L" else (level, 0, 255)).save(path)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    path = tmp_path / "pets.v1"
    for part, n in (("train", 10), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(n):
                paint(path / part / name / f"{number:02}.png", 100 * label + number)
    return path


def test_folder(image_folder: Path) -> None:
    (image_folder / "train" / "cat" / "notes.txt").write_text("not an image")
    data = load_data(f"folder:{image_folder}")
    assert (data.label, data.n_classes, data.input_shape, data.augmentation) == ("pets.v1", 2, (3, 4, 6), "crop_flip")
    assert (len(data.train), len(data.validation)) == (18, 2)
    test = data.test_split()
    assert test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    images = test.images(torch.tensor([5, 0]))
    assert images.shape == (2, 3, 4, 6) and images[0, :, 0, 0].tolist() == [102, 0, 255]
    assert images[1, :, 3, 5].tolist() == [0, 0, 255]


def test_folder_val_is_test_or_validation(image_folder: Path) -> None:
    (image_folder / "test").rename(image_folder / "val")
    data = load_data(f"folder:{image_folder}")
    assert (len(data.train), len(data.validation), len(data.test_split())) == (18, 2, 6)
    for label in ("cat", "dog"):
        paint(image_folder / "test" / label / "x.png", 7)
    data = load_data(f"folder:{image_folder}")
    assert (len(data.train), len(data.validation), len(data.test_split())) == (20, 6, 2)


def test_large_folder_is_decoded_on_access(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = load_data(f"folder:{image_folder}")
    monkeypatch.setattr(folder, "MAX_IN_MEMORY_BYTES", 3 * 4 * 6 * 18 - 1)
    lazy = load_data(f"folder:{image_folder}")
    assert isinstance(in_memory.train, InMemorySplit) and isinstance(lazy.train, FolderSplit)
    assert isinstance(lazy.validation, InMemorySplit)  # 2 images fit
    assert rows(lazy.train) == rows(in_memory.train) and lazy.mean == in_memory.mean
    expected = balanced_batch(in_memory, in_memory.train, 2, generator())
    assert all(map(torch.equal, balanced_batch(lazy, lazy.train, 2, generator()), expected))
    assert len(load_data(f"folder:{image_folder}", n_train=4).train) == 4


def test_folder_images_take_the_size_of_the_first(image_folder: Path) -> None:
    paint(image_folder / "train" / "dog" / "05.png", 50, size=(60, 20), mode="L")
    paint(image_folder / "train" / "dog" / "06.png", 50, size=(1, 1))
    assert load_data(f"folder:{image_folder}").input_shape == (3, 4, 6)
    paint(image_folder / "train" / "cat" / "00.png", 50, size=(300, 230))
    assert load_data(f"folder:{image_folder}", n_train=2).input_shape == (3, 224, 224)


def test_decoded_images_are_cut_around_the_center(tmp_path: Path) -> None:
    wide = Image.new("RGB", (8, 4), (255, 0, 0))
    wide.paste((0, 0, 255), (2, 0, 6, 4))
    wide.save(tmp_path / "x.png")
    assert folder.decode_image(tmp_path / "x.png", (4, 4))[:, 2].tolist() == [[0] * 4, [0] * 4, [255] * 4]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "train").rename(path / "training"), "must hold train/CLASS/images"),
        (lambda path: (path / "test").rename(path / "testing"), "must hold train/CLASS/images"),
        (lambda path: (path / "train" / "eel").mkdir(), r"classes without an image \(eel\)"),
        (
            lambda path: (path / "train" / "dog" / "03.png").write_bytes(b"\x89PNG"),
            "03.png' cannot be read as an image",
        ),
        (lambda path: (path / "train" / "cat" / "00.png").write_bytes(b""), "00.png' cannot be read as an image"),
        (lambda path: (path / "test" / "dog").rename(path / "test" / "fox"), "classes that train lacks: fox"),
        (lambda path: [file.unlink() for file in (path / "test").rglob("*.png")], "holds no images"),
    ],
)
def test_broken_folders(image_folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(image_folder)
    with pytest.raises(DataError, match=message):
        load_data(f"folder:{image_folder}").test_split()


def test_image_that_claims_to_be_enormous(image_folder: Path) -> None:
    path = image_folder / "train" / "dog" / "03.png"
    raw = bytearray(path.read_bytes())
    raw[16:24] = (100_000).to_bytes(4, "big") * 2  # width and height of the PNG header
    raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, "big")
    path.write_bytes(raw)
    with pytest.raises(DataError, match="03.png.*exceeds limit"):
        load_data(f"folder:{image_folder}")


# Real data


@pytest.mark.data
def test_fashion_mnist() -> None:
    data = load_data("fashion_mnist", root=os.environ["PANNING_DATA"])
    test = data.test_split()
    assert (len(data.train), len(data.validation), len(test)) == (54_000, 6000, 10_000)
    assert (data.label, data.input_shape, data.n_classes) == ("Fashion-MNIST", (1, 28, 28), 10)
    assert data.train.labels.bincount().tolist() == [5400] * 10
    assert data.validation.labels.bincount().tolist() == [600] * 10
    assert data.mean == pytest.approx((0.2860,), abs=0.005) and data.std == pytest.approx((0.3530,), abs=0.005)
    assert load_data("fashion_mnist", n_train=1000).train.labels.bincount().tolist() == [100] * 10


@pytest.mark.data
def test_cifar10_archive() -> None:
    data = load_data("npz:cifar10.npz", root=os.environ["PANNING_DATA"])
    assert (len(data.train), len(data.validation), len(data.test_split())) == (45_000, 5000, 10_000)
    assert (data.label, data.input_shape, data.augmentation) == ("cifar10", (3, 32, 32), "crop_flip")
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.005)
    assert data.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.005)
