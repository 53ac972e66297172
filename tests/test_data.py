"""Data sources: what they give, what they say about what they inferred, and what they refuse."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from compress import data as package
from compress.data import check_input, check_output, from_arrays, open_data
from compress.data.splits import Augment, change
from compress.errors import BadInput, CompressWarning, EmptyData

DIGITS = 1797


def image(path: Path, size=(8, 8), mode="RGB", seed=0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if mode == "L" else (*size, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def folder(root: Path, parts=("train", "test"), classes=("cat", "dog"), count=10, **options) -> Path:
    for p, part in enumerate(parts):
        for c, name in enumerate(classes):
            for i in range(count):
                image(root / part / name / f"{i:03}.png", seed=1000 * p + 100 * c + i, **options)
    return root


def arrays(n=40, shape=(8, 8), classes=4, seed=0):
    draws = np.random.default_rng(seed)
    return {"x_train": draws.integers(0, 256, (n, *shape), dtype=np.uint8), "y_train": np.arange(n) % classes}


def says(data, *words: str) -> bool:
    return any(all(word in note for word in words) for note in data.notes)


# --- sources -----------------------------------------------------------------------------------------------------------


def test_digits_have_a_test_part_of_their_own_whatever_the_seed():
    data, other = open_data("digits"), open_data("digits", seed=1)
    assert data.own_test and sum(map(len, (data.train, data.held_out, data.test))) == DIGITS
    assert data.spec.shape == (1, 8, 8) and len(data.spec.classes or ()) == 10
    assert says(data, "Normalization inferred") and says(data, "held out")
    (one,), (same,) = data.test.batches(DIGITS), other.test.batches(DIGITS)
    values = one.inputs[0] * torch.tensor(data.spec.std) + torch.tensor(data.spec.mean)
    again = same.inputs[0] * torch.tensor(other.spec.std) + torch.tensor(other.spec.mean)
    torch.testing.assert_close(values, again, rtol=0, atol=1e-5)


def all_of_the_digits(seed: int = 0):
    found = load_digits()
    return from_arrays({"x": found.images.astype(np.uint8), "y": found.target}, seed=seed, name="mine")


def test_what_has_one_part_is_split_into_three_and_every_inference_is_told():
    data = all_of_the_digits()
    parts = [set(part.index.tolist()) for part in (data.train, data.held_out, data.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == DIGITS and not data.own_test
    assert says(data, "no test part", "seed 0") and says(data, "Normalization inferred") and says(data, "held out")


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    first, again, other = all_of_the_digits(3), all_of_the_digits(3), all_of_the_digits(4)
    assert first.test.index.equal(again.test.index) and first.spec == again.spec
    assert not first.test.index.equal(other.test.index)


def test_a_folder_with_train_and_test_keeps_its_parts_and_sorts_its_classes(tmp_path):
    data = open_data(folder(tmp_path, classes=("dog", "ant", "cat")))
    assert data.spec.classes == ("ant", "cat", "dog")
    assert (len(data.train), len(data.held_out), len(data.test)) == (27, 3, 30)
    first = next(data.test.batches(30))
    assert first.target is not None and first.target.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    expected = torch.from_numpy(np.array(Image.open(tmp_path / "test" / "ant" / "000.png"))).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.spec.mean, data.spec.std))
    assert torch.allclose(first.inputs[0][0], (expected - mean) / std, atol=1e-6)  # float32 rounding of values up to 2


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("content", [None, "notes.txt", "picture.heic", ".hidden.png"])
def test_a_class_folder_without_images_is_refused_since_later_classes_would_move_down(tmp_path, part, content):
    folder(tmp_path, classes=("ant", "cat"))
    (tmp_path / part / "bee").mkdir()
    if content is not None:
        (tmp_path / part / "bee" / content).write_bytes(b"x")
    with pytest.raises(BadInput, match="without an image to train on: bee"):
        open_data(tmp_path)


def test_classes_that_are_listed_keep_their_numbers_without_images(tmp_path):
    folder(tmp_path, classes=("ant", "cat"))
    (tmp_path / "train" / "bee").mkdir()
    image(tmp_path / "test" / "bee" / "1.png")
    for broken in (tmp_path / "train" / "ant").iterdir():
        broken.write_bytes(b"no image")
    listed = package.Settings(classes=("ant", "bee", "cat", "dog"), max_unreadable=0.9)
    data = open_data(tmp_path, settings=listed)
    target = next(data.train.batches(30)).target
    assert target is not None and set(target.tolist()) == {2}
    assert says(data, "train part", "no image of 2 classes", "bee; dog")


def test_a_test_part_without_images_of_a_class_says_so_and_keeps_the_numbers(tmp_path):
    folder(tmp_path, classes=("ant", "bee", "cat"))
    for path in (tmp_path / "test" / "bee").iterdir():
        path.unlink()
    data = open_data(tmp_path)
    target = next(data.test.batches(30)).target
    assert target is not None and set(target.tolist()) == {0, 2} and says(data, "test part", "no image of 1 class,", "bee")


def test_a_test_class_that_is_not_in_train_is_refused(tmp_path):
    image(folder(tmp_path) / "test" / "eel" / "1.png")
    with pytest.raises(BadInput, match="not in train/: eel"):
        open_data(tmp_path)


def test_a_validation_part_beside_a_test_part_is_what_is_held_out(tmp_path):
    data = open_data(folder(tmp_path, ("train", "val", "test")))
    assert (len(data.train), len(data.held_out), len(data.test)) == (20, 20, 20)
    assert says(data, "validation part")


def test_one_folder_of_classes_is_split_by_seed(tmp_path):
    data = open_data(folder(tmp_path, parts=(".",), count=20))
    assert (len(data.train), len(data.held_out), len(data.test)) == (29, 3, 8)


def test_images_without_labels_are_enough(tmp_path):
    for i in range(20):
        image(tmp_path / f"{i}.png", seed=i)
    data = open_data(tmp_path)
    assert not data.spec.labeled and data.spec.classes is None
    assert next(data.train.batches(4)).target is None
    assert says(data, "no labels")


def test_masks_follow_their_images_through_flips_and_shifts(tmp_path):
    for i in range(10):
        path = image(tmp_path / "images" / f"{i}.png", mode="L", seed=i)
        mask = (np.asarray(Image.open(path)) > 127).astype(np.uint8)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    data = open_data(tmp_path)
    assert data.spec.task == "segmentation" and data.spec.shape == (1, 8, 8)
    batch = next(data.train.batches(7, augment=True, seed=1))
    assert batch.target is not None
    raw = batch.inputs[0][:, 0] * data.spec.std[0] + data.spec.mean[0]
    inside = batch.target != 255
    assert inside.any() and not inside.all()  # the shift brought in a border
    assert ((raw > 0.499) == (batch.target == 1))[inside].all()


def test_keras_arrays_open_with_channels_last_and_say_so(tmp_path):
    file = tmp_path / "set.npz"
    np.savez(file, **arrays(shape=(8, 6, 3)), x_test=np.zeros((4, 8, 6, 3), np.uint8), y_test=np.arange(4))
    data = open_data(file)
    assert data.spec.shape == (3, 8, 6) and len(data.test) == 4
    assert says(data, "axes", "height, width, channels")


def test_arrays_need_neither_labels_nor_a_test_part():
    data = from_arrays({"x": arrays()["x_train"]})
    assert not data.spec.labeled and (len(data.train), len(data.held_out), len(data.test)) == (29, 3, 8)


@pytest.mark.parametrize(
    ("target", "task", "shape"),
    [
        (np.arange(40) % 4, "classification", ()),
        ((np.arange(40) % 4)[:, None], "classification", ()),
        (np.eye(4)[np.arange(40) % 4], "classification", ()),
        (np.linspace(0, 1, 40), "regression", (1,)),
        (np.random.default_rng(0).random((40, 3)), "regression", (3,)),
        (np.arange(40 * 64).reshape(40, 8, 8) % 3, "segmentation", (8, 8)),
        (np.random.default_rng(0).random((40, 8, 8, 3)), "image", (3, 8, 8)),
    ],
)
def test_the_task_follows_from_the_targets(target, task, shape):
    data = from_arrays({"x": arrays()["x_train"], "y": target})
    batch = next(data.train.batches(5))
    assert data.spec.task == task
    assert batch.target is not None and batch.target.shape == (5, *shape)


def test_arrays_that_are_not_used_are_told():
    images, labels = np.random.default_rng(0).integers(0, 255, (40, 8, 8), dtype=np.uint8), np.arange(40) % 2
    arrays = {"x_train": images, "y_train": labels}
    assert any("not used: x, y, beside x_train" in note for note in from_arrays(arrays | {"x": images, "y": labels}).notes)
    assert not any("not used" in note for note in from_arrays({"x": images, "y": labels}).notes)
    assert not any("not used" in note for note in from_arrays(arrays).notes)


@pytest.mark.parametrize("kind", ["uint8", "int64"])
def test_tokens_are_numbers_and_stay_what_they_are(kind):
    text = np.arange(60).reshape(6, 10).astype(kind)
    data = from_arrays({"x": text, "y": text + 1})
    assert data.spec.task == "text" and data.spec.shape == (10,) and len(data.spec.classes) == 61
    batch = next(data.train.batches(1, augment=True))
    assert batch.inputs[0].dtype == torch.float32 and batch.target.dtype == torch.int64
    assert torch.equal(batch.inputs[0].long() + 1, batch.target)
    assert check_output(data, (1, 10, 61)) == ()
    with pytest.raises(BadInput, match="reach class 60"):
        check_output(data, (1, 61, 10))
    with pytest.raises(BadInput, match="numbers of tokens"):
        from_arrays({"x": text, "y": text[:, 0]}, task="text")


def test_image_targets_of_another_size_are_only_in_the_way_of_flips_and_shifts():
    x = np.random.default_rng(0).integers(0, 255, (20, 8, 8)).astype(np.uint8)
    arrays = {"x": x, "y": np.repeat(np.repeat(x, 2, 1), 2, 2).astype(np.float32) / 255}
    still = from_arrays(arrays, task="image", augment={"flip": False, "shift": 0})
    batch = next(still.train.batches(20, augment=True))
    assert batch.inputs[0].shape[-2:] == (8, 8) and batch.target is not None and batch.target.shape[-2:] == (16, 16)
    moving = from_arrays(arrays, task="image", augment={"flip": True, "shift": 0})
    with pytest.raises(BadInput, match=r"\(16, 16\) cannot be shifted.*\(8, 8\)"):
        next(moving.train.batches(20, augment=True))


def test_image_targets_flip_and_shift_with_their_images():
    x = arrays(shape=(8, 8, 1))["x_train"]
    data = from_arrays({"x": x, "y": x.astype(np.float32) / 255}, task="image", augment={"flip": True, "shift": 2})
    batch = next(data.train.batches(20, augment=True))
    assert batch.target is not None and torch.allclose(batch.inputs[0], batch.target)


def test_torchvision_data_opens_from_disk_only(tmp_path, monkeypatch):
    from torchvision import datasets

    class Tiny:
        classes = ("a", "b")

        def __init__(self, root, train=True):
            count = 20 if train else 6
            self.data = np.arange(count * 192, dtype=np.uint8).reshape(count, 8, 8, 3)
            self.targets = [i % 2 for i in range(count)]

    monkeypatch.setattr(datasets, "SVHN", Tiny)
    data = open_data(f"torchvision:SVHN@{tmp_path}")
    assert data.spec.classes == ("a", "b") and len(data.test) == 6
    with pytest.raises(BadInput, match="does not open"):
        open_data(f"torchvision:CIFAR10@{tmp_path}")


def test_a_factory_may_give_data_sets_arrays_or_data(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from compress.data import from_arrays\n"
        "x, y = torch.randn(30, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3\n"
        "def sets(): return torch.utils.data.TensorDataset(x, y), torch.utils.data.TensorDataset(x[:6], y[:6])\n"
        "def arrays(): return {'x': x, 'y': y}\n"
        "def data(): return from_arrays({'x': x, 'y': y})\n"
        "def pairs(): return [((x[i], x[i]), y[i]) for i in range(30)]\n"
        "def nothing(): return 7\n"
    )
    sets = open_data(f"{tmp_path}/mine.py:sets")
    assert (len(sets.train), len(sets.held_out), len(sets.test)) == (27, 3, 6) and sets.spec.mean == (0, 0, 0)
    assert len(open_data(f"{tmp_path}/mine.py:arrays").test) == 6
    assert len(open_data(f"{tmp_path}/mine.py:data").test) == 6
    assert len(next(open_data(f"{tmp_path}/mine.py:pairs").train.batches(2)).inputs) == 2
    with pytest.raises(BadInput, match="gives a int"):
        open_data(f"{tmp_path}/mine.py:nothing")
    with pytest.raises(BadInput, match=r"no function lost; it has: .*sets"):
        open_data(f"{tmp_path}/mine.py:lost")


def test_a_settings_file_spells_everything(tmp_path):
    folder(tmp_path / "photos", parts=(".",), size=(12, 10))
    (tmp_path / "data.toml").write_text(
        'source = "photos"\nsize = 8\nchannels = 1\nmean = [0.5]\nstd = [0.25]\nclasses = ["dog", "cat"]\n'
        "[augment]\nflip = true\nshift = 3\n[split]\ntest = 0.5\nheld_out = 0.3\n"
    )
    data = open_data(tmp_path / "data.toml")
    assert data.spec.shape == (1, 8, 8) and data.spec.classes == ("dog", "cat")
    assert (data.spec.mean, data.spec.std) == ((0.5,), (0.25,)) and data.spec.augment == Augment(True, 3)
    assert (len(data.train), len(data.held_out), len(data.test)) == (7, 3, 10)


def test_a_known_normalization_can_be_named_and_is_told():
    data = from_arrays(arrays(shape=(8, 8, 3)), normalize="imagenet")
    assert data.spec.mean == package.PRESETS["imagenet"][0] and says(data, "imagenet")


def test_inferred_normalization_gives_mean_0_and_std_1_on_the_training_images():
    data = open_data("digits")
    x = next(data.train.batches(len(data.train))).inputs[0]
    assert abs(float(x.mean())) < 1e-3 and abs(float(x.std()) - 1) < 1e-3  # the statistics are rounded to four digits


def test_images_that_do_not_fit_into_memory_are_decoded_while_running_with_the_same_result(tmp_path):
    folder(tmp_path)
    stored = open_data(tmp_path)
    lazy = open_data(tmp_path, settings=package.Settings(memory_gb=1e-9, mean=stored.spec.mean, std=stored.spec.std))
    assert says(lazy, "while running")
    for one, other in zip(stored.train.batches(7, shuffle=True), lazy.train.batches(7, shuffle=True), strict=True):
        assert one.inputs[0].equal(other.inputs[0]) and one.target is not None and one.target.equal(other.target)


# --- batches -----------------------------------------------------------------------------------------------------------


def test_batches_repeat_for_the_same_seed_and_epoch_and_differ_for_the_next_epoch():
    train = open_data("digits").train

    def first(epoch):
        return next(train.batches(32, shuffle=True, augment=True, seed=5, epoch=epoch)).inputs[0]

    assert first(0).equal(first(0)) and not first(0).equal(first(1))


def test_a_limit_draws_from_all_classes_instead_of_taking_the_first_files(tmp_path):
    train = open_data(folder(tmp_path, count=30)).train
    batch = next(train.batches(20, limit=20))
    assert batch.target is not None and len(batch.target) == 20 and set(batch.target.tolist()) == {0, 1}


@pytest.mark.parametrize("augment", [False, True])
def test_batches_of_one_channel_have_the_strides_that_view_needs(augment, tmp_path):
    sources = [from_arrays(arrays(shape=(8, 8, 1))), open_data(folder(tmp_path, mode="L"))]
    for data in sources:
        x = next(data.train.batches(4, augment=augment)).inputs[0]
        assert x.shape[1] == 1 and x.stride() == (64, 64, 8, 1)


def test_an_incomplete_last_batch_is_left_out_on_request_only():
    train = from_arrays(arrays()).train
    sizes = [len(batch.inputs[0]) for batch in train.batches(12)]
    assert sizes == [12, 12, 5] and len(list(train.batches(12, drop_last=True))) == 2
    assert len(list(train.batches(100, drop_last=True))) == 1


def test_changes_move_each_sample_by_whole_pixels_with_a_black_border():
    images = torch.arange(1, 65).view(1, 1, 8, 8).expand(200, 1, 8, 8).to(torch.uint8)
    moved, _ = change(images, None, Augment(flip=True, shift=2), torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images[0, 0], (2, 2, 2, 2))
    windows = [p.unfold(0, 8, 1).unfold(1, 8, 1).flatten(0, 1) for p in (padded, padded.flip(1))]
    possible = {tuple(cut.flatten().tolist()) for cut in torch.cat(windows)}
    seen = {tuple(m.flatten().tolist()) for m in moved}
    assert len(possible) == 50 and seen <= possible
    assert len(seen) > 40  # 200 draws of 50 leave out one or two on average


# --- bad input ---------------------------------------------------------------------------------------------------------


def test_unreadable_images_below_the_share_are_counted_and_named(tmp_path):
    folder(tmp_path, count=20)
    (tmp_path / "train" / "cat" / "003.png").write_bytes(b"no image")
    data = open_data(tmp_path)
    assert says(data, "1 of 80", "003.png") and len(data.train) + len(data.held_out) == 39


def test_unreadable_images_beyond_the_share_are_refused_with_five_names(tmp_path):
    folder(tmp_path, count=10)
    for i in range(7):
        (tmp_path / "train" / "cat" / f"00{i}.png").write_bytes(b"")
    with pytest.raises(BadInput, match=r"7 of 40 images.*000\.png.*004\.png.*and 2 more"):
        open_data(tmp_path)


def test_an_image_that_breaks_while_running_is_left_out_and_named(tmp_path):
    folder(tmp_path, count=20)
    whole = (tmp_path / "train" / "cat" / "003.png").read_bytes()
    (tmp_path / "train" / "cat" / "003.png").write_bytes(whole[: len(whole) // 2])
    train = open_data(tmp_path, settings=package.Settings(memory_gb=1e-9)).train
    count = sum(len(batch.inputs[0]) for batch in train.batches(8))
    assert count in (len(train) - 1, len(train))  # the image may be in the held-out part
    assert len(train.unreadable) == 1 if count < len(train) else not train.unreadable


def make_empty(root: Path) -> str:
    (root / "empty").mkdir()
    return str(root / "empty")


def make_one_class(root: Path) -> str:
    return str(folder(root / "one", classes=("cat",)))


def make_mixed_sizes(root: Path) -> str:
    image(folder(root / "mixed") / "train" / "cat" / "big.png", size=(9, 9))
    return str(root / "mixed")


def make_beside(root: Path) -> str:
    image(folder(root / "beside", parts=(".",)) / "loose.png")
    return str(root / "beside")


def make_strange(root: Path) -> str:
    (root / "data.csv").write_text("1,2")
    return str(root / "data.csv")


def make_broken_npz(root: Path) -> str:
    (root / "x.npz").write_bytes(b"PK")
    return str(root / "x.npz")


def make_unnamed_npz(root: Path) -> str:
    np.savez(root / "y.npz", images=np.zeros(3))
    return str(root / "y.npz")


def make_pickled_npz(root: Path) -> str:
    np.savez(root / "p.npz", x_train=np.array([{}], dtype=object))
    return str(root / "p.npz")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda root: "", EmptyData, "No data was given"),
        (lambda root: str(root / "nowhere"), BadInput, "There is no data at"),
        (lambda root: "no_such_module:f", BadInput, "importing no_such_module fails"),
        (lambda root: "torchvision:NoSuchSet@.", BadInput, "no data set 'NoSuchSet'"),
        (make_empty, EmptyData, "has no images"),
        (make_one_class, BadInput, "one class folder only"),
        (make_mixed_sizes, BadInput, r"several sizes \(8x8 to 9x9\).*--input-shape"),
        (make_beside, BadInput, "beside folders with images"),
        (make_strange, BadInput, r"is a \.csv file"),
        (make_broken_npz, BadInput, "cannot be read as .npz"),
        (make_unnamed_npz, BadInput, "has the arrays images; needed are x_train"),
        (make_pickled_npz, BadInput, "cannot be read as .npz"),
    ],
)
def test_data_that_cannot_be_used_is_refused_with_one_sentence(tmp_path, make, error, words):
    with pytest.raises(error, match=words) as refusal:
        open_data(make(tmp_path))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change_", "words"),
    [
        ({"y_train": np.zeros(40, int)}, "all of one class"),
        ({"y_train": np.arange(40) - 1}, "go down to -1"),
        ({"y_train": np.arange(39)}, "40 images but 39 labels"),
        ({"y_train": np.arange(40) * 10**9}, "reach 39000000000, which is no number of a class"),
        ({"y_train": np.full((40, 8, 8), 2**31) * (np.arange(40) % 2)[:, None, None]}, "reach 2147483648"),
        ({"x_train": np.full((40, 8, 8), np.nan)}, "NaN"),
        ({"x_train": np.zeros((0, 8, 8))}, "length 0"),
        ({"x_train": np.zeros((40, 2, 2, 2, 2))}, "5 axes"),
        ({"classes": np.array(["a", "b"])}, "names for 2 only"),
        ({"x_test": np.zeros((4, 8, 8))}, "some parts only"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(change_, words):
    with pytest.raises(BadInput, match=words):
        from_arrays(arrays() | change_)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_of_arrays_is_refused_wherever_the_damage_is(tmp_path, save):
    save(tmp_path / "whole.npz", **arrays())
    whole = (tmp_path / "whole.npz").read_bytes()
    path, seen = tmp_path / "damaged.npz", set[str]()
    for place in range(30, len(whole), 41):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            open_data(path)
        except BadInput as error:
            assert "\n" not in str(error)
            seen.add(str(error))
    assert any("Bad CRC-32" in text for text in seen)
    assert save is np.savez or any("decompressing" in text or "invalid" in text for text in seen)


def test_what_is_no_regular_file_is_refused_instead_of_waited_for(tmp_path):
    for name in ("pipe.npz", "pipe.toml", "pipe"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(BadInput, match="is no regular file"):
            open_data(tmp_path / name)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 16, 16)])
def test_data_of_another_shape_than_the_model_takes_is_refused(shape, tmp_path):
    with pytest.raises(BadInput, match="The input shape is"):
        open_data("digits", shape=shape)
    with pytest.raises(BadInput, match="The input shape is"):
        check_input(open_data("digits"), shape)


def test_a_folder_is_resized_to_the_model_and_says_so_but_is_not_recolored(tmp_path):
    folder(tmp_path)
    data = open_data(tmp_path, shape=(3, 4, 4))
    assert data.spec.shape == (3, 4, 4) and says(data, "8x8", "4x4")
    # All of one size, and another shape: hardly what the model was trained on.
    with pytest.warns(CompressWarning, match="are 8x8, and the input shape is 3x4x6, of other proportions. .* --input-shape"):
        data = open_data(tmp_path, shape=(3, 4, 6))
    assert data.spec.shape == (3, 4, 6) and says(data, "8x8", "4x6") and says(data, "other proportions")
    said = (
        r"input shape is 1x8x8, .* have 3 channels. Give --input-shape 3x8x8, or leave it out; where the model takes 1 channel,"
    )
    with pytest.raises(BadInput, match=said):
        open_data(tmp_path, shape=(1, 8, 8))


def test_labels_beyond_the_models_outputs_are_refused():
    data = open_data("digits")
    check_output(data, (1, 10))
    with pytest.raises(BadInput, match="reach class 9, the model has 5 outputs"):
        check_output(data, (1, 5))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task = 'classification'", "names no data"),
        ("source = 'digits'\nsise = 3", "sise"),
        ("source = 'digits'\nmean = [0.5]", "mean and std go together"),
        ("source = 'digits'\n[split]\ntest = 2", "split.test"),
        ("source = ", "cannot be read"),
        ("source = 'digits'\ntask = 'image'", "targets"),
    ],
)
def test_a_settings_file_with_a_mistake_is_refused(tmp_path, text, words):
    (tmp_path / "data.toml").write_text(text)
    with pytest.raises(BadInput, match=words):
        open_data(tmp_path / "data.toml")


def test_missing_scikit_learn_is_refused_with_the_line_to_type(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(BadInput, match=r"pip install 'entropress\[demo\]'"):
        open_data("digits")
