"""A model in memory: the same plan and figures as from its file, the caller's model as it was, and refusals in a sentence."""

from __future__ import annotations

import copy
import inspect
import json
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live import Small, everything, net, same, samples
from pages import README, ROOT, blocks, file_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import compress
from compress import api, keywords
from compress.checkpoint.load.live_module import take
from compress.commands import keyword_errors
from compress.data import Data, from_arrays
from compress.data.objects import open_objects
from compress.errors import BadInput, CompressError, CompressWarning, EmptyData, UnsupportedModel
from compress.pipeline.result import Result
from compress.recipe import Recipe
from compress.report.html.headline import of_report

QUICK: Any = {"target": "macs=0.5", "epochs": 0.1, "rounds": 5, "calibration": 60, "align": 1, "depth": 0, "threads": 1}


def plain() -> nn.Sequential:
    """Classes of torch alone: a file of it opens without more ado."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ).eval()  # fmt: skip


# The same as the file way


def test_a_run_in_memory_gives_the_plan_and_the_figures_of_the_run_of_its_file(tmp_path: Path):
    generator = np.random.default_rng(0)
    y = np.arange(90) % 4
    x = (generator.integers(0, 60, (90, 8, 8)) + 40 * y[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    model = plain()
    torch.save(model, tmp_path / "model.pt")
    quick = {**QUICK, "allow_doubtful": True}  # it was never trained
    report = compress.run(tmp_path / "model.pt", data=tmp_path / "data.npz", out=tmp_path / "by-file", **quick)
    result = compress.run(model, data=(x, y), out=tmp_path / "in-memory", **quick)
    assert (tmp_path / "by-file/plan.json").read_bytes() == (tmp_path / "in-memory/plan.json").read_bytes()
    assert result.plan.to_json() == (tmp_path / "by-file/plan.json").read_text()
    figures = [[(s.params, s.macs, s.file_bytes, s.quality) for s in one.stages] for one in (report, result.report)]
    assert figures[0] == figures[1]
    assert report.exactness == result.report.exactness
    stored = compress.load(tmp_path / "by-file/model.compressed").state_dict()
    assert same(dict(stored), dict(result.model.state_dict()))


def test_what_comes_back_is_a_smaller_module_that_trains_and_computes_what_its_file_computes(tmp_path: Path):
    x, y = samples()
    model = net()
    model.head.bias.requires_grad_(False)
    result = compress.run(model, data=(x, y), **QUICK)
    assert isinstance(result, Result) and isinstance(result.model, nn.Module) and not result.model.training
    assert sum(p.numel() for p in result.model.parameters()) == result.report.result.params < result.report.dense.params
    assert {n: p.requires_grad for n, p in result.model.named_parameters() if n == "head.bias"} == {"head.bias": False}
    assert sum(p.requires_grad for p in result.model.parameters()) == len(list(result.model.parameters())) - 1
    assert list(result.exports) == ["onnx"] and result.exports["onnx"].is_file() and result.out.is_dir()
    stored = compress.load(result.out / "model.compressed")
    torch.testing.assert_close(stored(x), result.model(x), rtol=0, atol=0)
    before = result.model(x).detach().clone()
    optimizer = torch.optim.SGD(result.model.train().parameters(), lr=0.1)
    nn.functional.cross_entropy(result.model(x), y).backward()
    optimizer.step()
    assert not torch.allclose(before, result.model.eval()(x), atol=1e-4)
    assert str(result.out) in repr(result) and len(repr(result)) < 300


def test_every_verb_takes_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    x, y = samples()
    model = net()
    settings: Any = {**QUICK, "epochs": 0}
    decision = compress.plan(model, data=(x, y), **settings)
    assert decision.planned.macs <= 0.5 * decision.dense.macs and not list(tmp_path.iterdir())
    assert compress.plan(model, data=(x, y), out="plan.json", **settings).plan.to_json() == Path("plan.json").read_text()
    dry = compress.run(model, data=(x, y), dry_run=True, **settings)
    assert dry.planned.macs <= 0.5 * dry.dense.macs
    rows = compress.analyze(model, data=(x, y), timed=False, calibration=40)
    assert {"first", "second"} <= {row.layer for row in rows}
    assert [g.name for g in compress.explain(model, inputs=x[:1])] == [g.name for g in compress.explain(model, data=(x, y))]
    assert compress.explain(model, "first", inputs=x)[0].tensor == "first.weight"
    made = compress.export(model, inputs=x[:2], out="net.onnx")
    assert made.path.is_file()
    compress.save(model, "net.compressed", inputs=x)
    torch.testing.assert_close(compress.load("net.compressed")(x), model(x), rtol=1e-5, atol=1e-6)
    timed = compress.bench(model, plain(), inputs=x, rounds=5, threads=1)
    assert list(timed) == ["Small", "Sequential"] and all(row.reason is None for row in timed.values())
    again = compress.bench(model, net(1), inputs=x, rounds=5, threads=1)
    assert list(again) == ["Small 1", "Small 2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.compressed", "net.onnx", "plan.json"]


def test_a_run_in_memory_goes_on_with_the_same_weights_and_samples_only(tmp_path: Path):
    x, y = samples()
    first = compress.run(net(), data=(x, y), out=tmp_path / "out", **QUICK)
    again = compress.run(net(), data=(x, y), out=tmp_path / "out", resume=True, **QUICK)
    assert [s.params for s in again.report.stages] == [s.params for s in first.report.stages]
    with pytest.raises(BadInput, match="was started with other settings"):
        compress.run(net(1), data=(x, y), out=tmp_path / "out", resume=True, **QUICK)
    with pytest.raises(BadInput, match="was started with other settings"):
        compress.run(net(), data=(x + 1, y), out=tmp_path / "out", resume=True, **QUICK)
    with pytest.raises(BadInput, match=r"The recipe's model was in memory \(Small, sha256 .*Give it in Python"):
        compress.run(recipe=tmp_path / "out/recipe.toml", data="digits", out=tmp_path / "other")
    with pytest.raises(BadInput, match=r"The recipe's data was in memory \(a pair of Tensor and Tensor, sha256 "):
        compress.run(net(), recipe=tmp_path / "out/recipe.toml", out=tmp_path / "other")
    repeated = compress.run(net(), recipe=tmp_path / "out/recipe.toml", data=(x, y), out=tmp_path / "repeated")
    assert repeated.plan == first.plan


def test_a_refused_run_leaves_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(CompressError):
        compress.run(net(), data=samples(), target="macs=0.0001")
    assert not list(tmp_path.iterdir())
    result = compress.run(net(), data=samples(), **QUICK)
    assert list(tmp_path.iterdir()) == [result.out]


def test_methods_in_memory_are_compared(tmp_path: Path):
    found = compress.run(net(), data=samples(), methods="magnitude,random", out=tmp_path / "both", **{**QUICK, "epochs": 0})
    assert (tmp_path / "both/magnitude/plan.json").is_file() and (tmp_path / "both/compare.json").is_file()
    assert {run.method for run in found.runs} == {"magnitude", "random"}


# The caller's model


@pytest.mark.parametrize("training", [False, True])
def test_the_model_of_the_caller_is_not_changed(training: bool):
    x, y = samples()
    model = net().train(training)
    model.norm.eval()
    model.head.weight.requires_grad_(False)
    nn.functional.cross_entropy(model(x), y).backward()
    seen: list[int] = []
    model.first.register_forward_hook(lambda *_: None)
    model.second.register_full_backward_hook(lambda *_: seen.append(1))
    before = everything(model)
    state = torch.random.get_rng_state()
    result = compress.run(model, data=(x, y), **QUICK)
    compress.plan(model, data=(x, y), **{**QUICK, "epochs": 0})
    compress.explain(model, inputs=x)
    assert same(before, everything(model))
    assert torch.equal(state, torch.random.get_rng_state())
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in result.model.parameters()}
    assert not shared


def test_types_and_wrappers_stay_the_callers_and_the_plan_is_that_of_the_plain_model():
    x, y = samples()
    expected = compress.plan(net(), data=(x, y), **{**QUICK, "epochs": 0}).plan
    for model in (nn.DataParallel(net()), torch.optim.swa_utils.AveragedModel(net())):
        before = everything(model)
        found = compress.plan(model, data=(x, y), **{**QUICK, "epochs": 0})
        assert found.plan == expected and same(before, everything(model))
    half = net().half()
    assert "float16" in " ".join(compress.plan(half, data=(x, y), **{**QUICK, "epochs": 0}).notes)
    assert {p.dtype for p in half.parameters()} == {torch.float16}


def test_a_traced_model_is_taken_again():
    x, y = samples()
    first = compress.run(net(), data=(x, y), **QUICK)
    again = compress.run(first.model, data=(x, y), **{**QUICK, "target": "macs=0.7"})
    assert again.report.dense.params == first.report.result.params > again.report.result.params


class Tokens(nn.Module):
    """Whole numbers in, classes out."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.one, self.two = nn.Embedding(11, 8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(self.table(x).mean(1))))


class Twofold(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(3, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.relu(self.a(x) + self.b(y)))


def test_tokens_and_several_inputs_go_through():
    torch.manual_seed(0)
    tokens, labels = torch.randint(0, 11, (60, 5)), torch.arange(60) % 3
    result = compress.run(Tokens().eval(), data=(tokens, labels), inputs=tokens[:1], **{**QUICK, "target": "params=0.7"})
    assert result.model(tokens).shape == (60, 3) and result.report.result.params < result.report.dense.params
    pair = (torch.randn(60, 6), torch.randn(60, 3))
    both = TensorDataset(*pair, torch.arange(60) % 4)
    loader = DataLoader(
        both,
        16,
        collate_fn=lambda items: (
            tuple(map(torch.stack, list(zip(*items, strict=True))[:2])),
            torch.tensor([i[2] for i in items]),
        ),
    )
    found = [compress.run(Twofold().eval(), data=data, **QUICK) for data in ((pair, torch.arange(60) % 4), loader)]
    assert all(one.model(*pair).shape == (60, 4) for one in found)


# The kinds of data


class Pairs(Dataset[Any]):
    """A map-style data set over tensors."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i], int(self.y[i])


class Stream(IterableDataset[Any]):
    """Items one after the other, as long as somebody asks."""

    def __init__(self, x: Tensor, y: Tensor, endless: bool = False) -> None:
        self.x, self.y, self.endless = x, y, endless

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from zip(self.x, self.y.tolist(), strict=True)
            if not self.endless:
                return


def first_inputs(data: Data) -> Tensor:
    return torch.cat([batch.inputs[0] for batch in data.train.batches(500)])


KINDS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a pair": lambda x, y: (x, y),
    "arrays": lambda x, y: (x.numpy(), y.numpy()),
    "a list": lambda x, y: [x, y],
    "a Dataset": Pairs,
    "TensorDataset": TensorDataset,
    "an IterableDataset": Stream,
    "a DataLoader": lambda x, y: DataLoader(Pairs(x, y), 16),
    "a DataLoader with workers": lambda x, y: DataLoader(Pairs(x, y), 16, num_workers=1),
    "a DataLoader of a stream": lambda x, y: DataLoader(Stream(x, y), 16),
    "batches": lambda x, y: list(zip(x.split(16), y.split(16), strict=True)).__iter__(),
    "a function": lambda x, y: lambda: zip(x.split(16), y.split(16), strict=True),
    "a function of a pair": lambda x, y: lambda: (x, y),
    "a dict": lambda x, y: {"train": (x, y)},
    "names": lambda x, y: {"x": x, "y": y},
    "Data": lambda x, y: open_objects((x, y)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_every_kind_of_data_gives_the_samples_as_they_are(kind: str):
    x, y = samples()
    x = 3 * x + 100  # far from mean 0 and std 1: they are not normalized, because they are what the model takes
    data, expected = open_objects(KINDS[kind](x, y)), open_objects((x, y))
    assert torch.equal(first_inputs(data), x[data.train.index]) and torch.equal(data.train.index, expected.train.index)
    batch = next(data.test.batches(500))
    assert torch.equal(batch.inputs[0], x[data.test.index]) and torch.equal(batch.target, y[data.test.index])
    assert data.spec.task == "classification" and data.spec.mean == (0.0,) and not data.spec.augment.flip


def test_parts_that_are_given_are_the_parts(tmp_path: Path):
    (x, y), (u, v) = samples(60), samples(20, seed=1)
    for test in ((u, v), DataLoader(Pairs(u, v), 8), Pairs(u, v)):
        data = open_objects({"train": Pairs(x, y), "test": test})
        assert torch.equal(next(data.test.batches(50)).inputs[0], u) and len(data.train) + len(data.held_out) == 60
    data = open_objects({"train": (x, y), "val": (u, v), "test": (u + 1, v)})
    assert torch.equal(next(data.held_out.batches(50)).inputs[0], u) and len(data.train) == 60


def test_images_of_eight_bits_are_normalized_as_those_of_a_file():
    y = np.arange(60) % 4
    x = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3)).astype(np.uint8)
    data, other = open_objects((x, y)), from_arrays({"x": x, "y": y})
    assert data.spec.shape == other.spec.shape == (3, 8, 8) and data.spec.mean == other.spec.mean != (0.0,)
    assert torch.equal(first_inputs(data), first_inputs(other))


def test_without_labels_quality_is_agreement():
    x, _ = samples()
    for given in (x, (x, None), TensorDataset(x), DataLoader(TensorDataset(x), 16)):
        data = open_objects(given)
        assert not data.spec.labeled and len(data.train) + len(data.held_out) + len(data.test) == 80
    result = compress.run(net(), data=x, **QUICK)
    assert result.report.result.quality is not None and result.report.result.quality.metric == "agreement"


def test_a_loader_that_shuffles_is_read_alike_every_time_and_draws_nothing_from_the_caller():
    x, y = samples()
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one = open_objects(DataLoader(Pairs(x, y), 16, shuffle=True), seed=3)
    torch.manual_seed(6)
    other = open_objects(DataLoader(Pairs(x, y), 16, shuffle=True), seed=3)
    assert torch.equal(first_inputs(one), first_inputs(other))
    torch.manual_seed(5)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_stream_without_an_end_is_cut_off_and_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("compress.data.batches.MOST", 100)
    x, y = samples()
    data = open_objects(DataLoader(Stream(x, y, endless=True), 16))
    assert len(data.train) + len(data.held_out) + len(data.test) == 80
    assert any("does not say where it ends, and repeats itself: its 80 different samples" in note for note in data.notes)
    once = open_objects(DataLoader(Stream(torch.rand(130, *x.shape[1:]), torch.arange(130) % 2, endless=True), 16))
    assert any("does not say where it ends: its first 112 samples" in note for note in once.notes)


def test_a_loader_that_gives_more_than_it_says_is_read_as_far_as_it_says():
    class Forever(torch.utils.data.Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            while True:
                yield from range(80)

        def __len__(self) -> int:
            return 80

    x, y = samples()
    data = open_objects(DataLoader(Pairs(x, y), 16, sampler=Forever()))
    assert len(data.train) + len(data.held_out) + len(data.test) == 80


def test_a_large_data_set_is_read_as_it_is_needed_and_a_large_loader_cut_off():
    from compress.data.settings import make

    x, y = samples()
    little = make(memory_gb=1e-6)
    lazy = open_objects(Pairs(x, y), settings=little)
    assert torch.equal(first_inputs(lazy), x[lazy.train.index]) and not hasattr(lazy.train.inputs[0], "values")
    cut = open_objects(DataLoader(Pairs(x, y), 16), settings=little)
    assert any("the first 16 samples are used" in note for note in cut.notes)


# Refusals


def raising(items: int) -> Dataset[Any]:
    class Raising(Pairs):
        def __getitem__(self, i: int) -> Any:
            if i == items:
                raise ValueError(f"sample {i} is broken")
            return super().__getitem__(i)

    return Raising(*samples(20))


class Named(Pairs):
    def __getitem__(self, i: int) -> Any:
        return {"image": self.x[i], "label": self.y[i]}


class Growing(Pairs):
    def __getitem__(self, i: int) -> Any:
        return torch.zeros(1, 4 + i // 16, 8), 0


def without_length() -> Any:
    class Unmeasured(Dataset[Any]):
        def __getitem__(self, i: int) -> Any:
            return torch.zeros(1), 0

    return Unmeasured()


def fails() -> Any:
    raise KeyError("no such split")


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "dictionaries": (
        lambda: DataLoader(Named(*samples())),
        r"\(a DataLoader of Named\) gives batches that are dictionaries \(image, label\).*b\['image'\], b\['label'\]\) for b in",
    ),
    "items that are dictionaries": (lambda: Named(*samples()), r"\(a Named\) gives items that are dictionaries"),
    "three parts": (lambda: TensorDataset(*samples(), torch.zeros(80)), r"gives items of 3 parts.*\(\(a, b\), targets\)"),
    "an empty loader": (lambda: DataLoader(Pairs(*samples(3)), 16, drop_last=True), r"gives no sample.*drop_last"),
    "an empty data set": (lambda: Pairs(*samples(0)), r"data has no training sample"),
    "an empty array": (lambda: (torch.zeros(0, 1, 8, 8), torch.zeros(0)), r"data has no training image"),
    "shapes": (
        lambda: DataLoader(Growing(*samples()), 16),
        r"samples of different shapes \(1x4x8 and numbers, then 1x5x8 and numbers\).*Resize or pad",
    ),
    "shapes within a batch": (lambda: DataLoader(Growing(*samples()), 20), r"raises while its batches are read.*stack"),
    "no length": (without_length, r"\(a Unmeasured\) has no length.*__len__"),
    "a worker": (
        lambda: DataLoader(raising(7), 4, num_workers=1),
        r"raises while its batches are read \(ValueError: sample 7 is broken\)\. Correct it\.",
    ),
    "a loader": (lambda: DataLoader(raising(7), 4), r"raises while its batches are read \(ValueError: sample 7 is broken\)"),
    "a data set": (lambda: raising(7), r"raises at item 7 \(ValueError: sample 7 is broken\)"),
    "the first item": (lambda: raising(0), r"raises when its first item is read \(ValueError: sample 0 is broken\)"),
    "a function": (lambda: fails, r"raises when it is called \(KeyError: 'no such split'\)"),
    "lengths": (lambda: (torch.zeros(9, 1, 8, 8), torch.zeros(8)), r"has 9 inputs and 8 targets"),
    "words": (lambda: iter([(torch.zeros(2, 3), ["cat", "dog"])]), r"gives targets that are a list"),
    "lists": (lambda: ([1.0, 2.0], [0, 1]), r"The data \(a pair of list and list\) cannot be used; needed is"),
    "a number": (lambda: 5, r"The data \(a int\) cannot be used; needed is a DataLoader, a Dataset"),
    "a module": (net, r"The data \(a Small\) cannot be used"),
    "keys": (lambda: {"training": samples()}, r"with the key 'training'; known are train"),
    "no train": (lambda: {"test": samples()}, r"a dict without 'train'"),
    "NaN": (lambda: (torch.full((9, 1, 8, 8), torch.nan), torch.arange(9) % 3), r"holds NaN"),
    "no axis": (lambda: iter([torch.tensor(1.0)]), r"without an axis of samples"),
    "two shapes": (
        lambda: {"train": (torch.randn(9, 1, 8, 8), torch.arange(9) % 3), "test": (torch.randn(9, 1, 9, 9), torch.arange(9) % 3)},
        r"parts of several shapes",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_data_that_cannot_be_used_is_refused_in_a_sentence(what: str):
    make, said = REFUSED[what]
    with pytest.raises(BadInput) as caught:
        compress.run(net(), data=make(), **QUICK)
    text = str(caught.value)
    assert re.search(said, text), text
    assert "\n" not in text and "0x" not in text and len(text) < 400 and "Traceback" not in text
    assert isinstance(caught.value, EmptyData) == what.startswith("an empty")


def test_a_loader_is_never_printed_whole():
    x, y = samples()
    for call in (lambda d: compress.run(net(), data=d, metric="nonsense"), lambda d: compress.run(net(), data=d, batch_size=d)):
        loader = DataLoader(Pairs(x, y), 16)
        with pytest.raises(BadInput) as caught:
            call(loader)
        assert len(str(caught.value)) < 400, str(caught.value)


MODELS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a state_dict": (lambda: dict(net().state_dict()), BadInput, r"The model is a dict.*load_state_dict"),
    "a class": (lambda: Small, BadInput, r"The model is the class Small.*Give Small\(\.\.\.\)"),
    "a function": (lambda: net, BadInput, r"The model is a function; needed is a torch.nn.Module"),
    "meta": (lambda: Small().to("meta"), BadInput, r"meta device"),
    "NaN": (lambda: spoiled(), BadInput, r"The model has 1 values.*first.bias"),
    "TorchScript": (lambda: torch.jit.trace(net(), samples()[0][:1]), UnsupportedModel, r"TorchScript"),
    "what cannot be copied": (lambda: holding(), BadInput, r"The model cannot be copied.*copy.deepcopy"),
    "another shape": (lambda: Small(3).eval(), BadInput, r"The data gives inputs of 1x8x8"),
}


def spoiled() -> nn.Module:
    model = net()
    with torch.no_grad():
        model.first.bias[0] = torch.nan
    return model


def holding() -> nn.Module:
    model = net()
    model.last = model(samples()[0])  # an output that still has its history
    return model


@pytest.mark.parametrize("what", MODELS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_a_model_that_cannot_be_used_is_refused_in_a_sentence(what: str):
    make, kind, said = MODELS[what]
    with pytest.raises(kind) as caught:
        compress.run(make(), data=samples(), **QUICK)
    assert re.search(said, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_without_data_says_what_it_takes():
    with pytest.raises(BadInput, match=r"There is no data.*data=\(x, y\), a Dataset or a DataLoader"):
        compress.run(net())


def test_inputs_that_are_not_known_are_asked_for():
    with pytest.raises(BadInput, match=r"The input size of the model is not known.*inputs=torch.zeros"):
        compress.explain(net())
    with pytest.raises(BadInput, match=r"inputs is int; needed are example tensors"):
        compress.explain(net(), inputs=3)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"does not run|input"):
        compress.explain(net(), inputs=torch.zeros(1, 5, 8, 8))
    with pytest.raises(BadInput, match=r"inputs=torch\.zeros"):
        compress.save(net(), "nowhere.compressed")


def test_a_model_of_a_class_of_a_script_leads_to_the_line_that_works(tmp_path: Path):
    (tmp_path / "script.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 3)\n\n    def forward(self, x):\n"
        "        return self.b(torch.relu(self.a(x)))\n\ntorch.manual_seed(0)\nmodel = Net()\ntorch.save(model, 'model.pt')\n"
        "import compress\nx, y = torch.randn(60, 6), torch.arange(60) % 3\n"
        "try:\n    compress.run('model.pt', data=(x, y))\nexcept compress.errors.BadInput as error:\n    print(error)\n"
        "result = compress.run(model, data=(x, y), target='params=0.5', epochs=0, rounds=5, depth=0, align=1)\n"
        "print(result.report.result.params < result.report.dense.params)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    message, smaller = done.stdout.splitlines()
    assert "__main__.Net" in message and "compress.run(model, data=...)" in message and "state_dict" in message
    assert smaller == "True"


# Settings as keywords, types and help


def test_the_keywords_are_the_fields_of_the_recipe():
    kinds = {}
    for made in (keywords.StepSettings, keywords.Common, keywords.Unplanned, keywords.Settings):
        for name, kind in made.__annotations__.items():
            kinds[name] = eval(kind.__forward_arg__, vars(typing) | vars(keywords) | {"Tensor": Tensor, "DataLike": Any})
    assert set(kinds) == set(Recipe.model_fields) - {"model"}
    wider = {"arch_kwargs", "input_shape", "data", "inputs", "export", "variants"}
    for name, kind in kinds.items():
        if name not in wider:
            assert kind == Recipe.model_fields[name].annotation, name


@pytest.mark.parametrize("verb", ["run", "plan", "analyze", "explain", "export", "bench"])
def test_help_tells_every_setting_with_its_type_its_default_and_its_meaning(verb: str):
    text = inspect.getdoc(getattr(compress, verb)) or ""
    flat = " ".join(text.split())
    for name, field in Recipe.model_fields.items():
        if name != "model":
            assert f" {name}: " in flat and f"= {field.get_default(call_default_factory=True)!r}" in flat, name
            assert " ".join((field.description or "?").split()) in flat, name
    assert flat.index("Raises:") < flat.index("Settings:")


@pytest.mark.parametrize("step", ["remove", "linearize", "merge", "reconstruct", "finetune", "quantize"])
def test_help_of_a_step_tells_the_settings_that_it_takes(step: str):
    flat = " ".join((inspect.getdoc(getattr(compress, step)) or "").split())
    told = flat[flat.index("Settings:") :]
    for name, field in Recipe.model_fields.items():
        default = field.get_default(call_default_factory=True)
        taken = re.search(
            rf" {name}: [^=]* = {re.escape(repr(default))} {re.escape(' '.join((field.description or '?').split()))}", told
        )
        assert (taken is not None) == (name in keywords.StepSettings.__annotations__), name


# Errors in the words of who called


def test_an_error_names_keywords_to_who_called_a_function_and_flags_at_a_shell(tmp_path: Path):
    with pytest.raises(BadInput) as called:
        compress.run(net(), data=samples(), methods="entropic,l1", method="l1")
    with pytest.raises(BadInput) as at_a_shell:
        api.run(net(), data=samples(), methods="entropic,l1", method="l1")
    assert str(called.value) == "methods does not go with method=. Leave one of them out."
    assert str(at_a_shell.value) == "--methods does not go with --method. Leave one of them out."
    (tmp_path / "x").mkdir()
    with pytest.raises(BadInput, match="the folder of a run, its out="):  # a verb that does without torch
        compress.report_page(tmp_path / "x")
    with pytest.raises(BadInput, match=r"none were given\. Add data="):
        compress.export(net(), inputs=torch.zeros(1, 1, 8, 8), format="onnx-int8", out=tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("at_a_shell", "called"),
    [
        ("loses more than --max-drop 0.5 allows.", "loses more than max_drop=0.5 allows."),
        ("Give --data: a folder.", "Give data=: a folder."),
        ("Give it with --input-shape CxHxW, once.", "Give it with input_shape=CxHxW, once."),
        ("Channels come first: --input-shape 3x8x8.", 'Channels come first: input_shape="3x8x8".'),
        ("take --method easier or nepenthe", 'take method="easier" or nepenthe'),
        ("Add --arch torchvision:NAME, or --trust-pickle.", 'Add arch="torchvision:NAME", or trust_pickle=True.'),
        ("--epochs is 0. Leave --epochs out, or --lr (now 1) alone.", "epochs is 0. Leave epochs out, or lr (now 1) alone."),
        ("Add --resume to go on, --force to replace it.", "Add resume=True to go on, force=True to replace it."),
        ("'compress doctor --json' and --nosuch say more.", "'compress doctor --json' and --nosuch say more."),
        ("A run with --method entropic --depth 0.", 'A run with method="entropic" depth=0.'),
    ],
)
def test_a_flag_is_the_keyword_of_the_function(at_a_shell: str, called: str):
    assert keyword_errors.in_keywords(at_a_shell, api.run) == called


def test_a_table_in_a_notebook_is_small_and_escaped():
    result = compress.run(net(), data=samples(), **QUICK)
    stage = result.report.stages[0].model_copy(update={"stage": "<b>dense & co</b>"})
    text = Result(
        result.model,
        result.report.model_copy(update={"stages": (stage, *result.report.stages[1:])}),
        result.plan,
        {},
        Path("<x>"),
    )._repr_html_()
    assert "&lt;b&gt;dense &amp; co&lt;/b&gt;" in text and "<b>" not in text and "<x>" not in text
    decision = compress.plan(net(), data=samples(), **{**QUICK, "epochs": 0})
    assert f"<td>{decision.planned.macs:,}</td>" in decision._repr_html_()
    assert text.count("<tr>") == len(result.report.stages) + 1 and "<script" not in text and "<style" not in text


def checked(tmp_path: Path, code: str) -> list[dict[str, Any]]:
    """What pyright says of a program."""
    pyright = pytest.importorskip("pyright")
    (tmp_path / "program.py").write_text(code)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)], "typeCheckingMode": "standard"}))
    line = [sys.executable, "-m", pyright.__name__, "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    return json.loads(subprocess.run(line, capture_output=True, text=True).stdout)["generalDiagnostics"]


def test_a_type_checker_knows_what_comes_back_and_which_settings_there_are(tmp_path: Path):
    code = (
        "import compress, torch\nfrom typing import assert_type\nfrom compress.pipeline.result import Result\n"
        "from compress.report.records import Report\nfrom compress.commands.plan import Decision\n"
        "from compress.report.comparison import Comparison\nfrom compress.commands.explain import DepthRow, GroupRow\n"
        "model, x, y = torch.nn.Linear(2, 2), torch.zeros(9, 2), torch.zeros(9)\n"
        "assert_type(compress.run(model, data=(x, y), epochs=1), Result)\n"
        "assert_type(compress.run('model.pt', data='images'), Report)\n"
        "assert_type(compress.run(model, data=(x, y), dry_run=True), Decision)\n"
        "assert_type(compress.run('model.pt', data='images', methods='obs,random'), Comparison)\n"
        "assert_type(compress.explain(model, inputs=x), list[GroupRow])\n"
        "assert_type(compress.explain(model, depth=True, inputs=x), list[DepthRow])\n"
        "compress.run(model, data=(x, y), optimiser='sgd')\n"
        "compress.run(model, data=(x, y), order='sideways')\n"
    )
    assert sorted({found["range"]["start"]["line"] for found in checked(tmp_path, code)}) == [14, 15]


def test_the_python_of_the_readme_is_accepted_by_a_type_checker(tmp_path: Path):
    code = [block.text for block in blocks(README) if block.language == "python"]
    assert code
    (tmp_path / "net.py").write_text(file_of("net.py"))  # the reader's own
    for text in code:
        assert [found["message"] for found in checked(tmp_path, text)] == []


def test_a_copy_shares_nothing_with_its_model():
    model = net()
    own = take(model).module
    assert not {p.data_ptr() for p in own.state_dict().values()} & {p.data_ptr() for p in model.state_dict().values()}
    assert same(dict(own.state_dict()), dict(copy.deepcopy(model).state_dict()))


def test_a_model_in_half_precision_says_in_which_one_it_comes_back():
    x, y = samples()
    with pytest.warns(CompressWarning, match=r"are float16; .* and what comes back is float32, too; \.half"):
        result = compress.run(net().half(), data=(x, y), **QUICK)
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}
    assert any("are float16" in note for note in result.report.notes)
    (warned,) = (warning for warning in result.report.warnings if "comes back is float32" in warning)
    # No figure is doubtful because of it.
    assert warned in result.report.asides and not result.report.verdict.startswith("Doubtful")
    assert "figures doubtful" not in " ".join(of_report(result.report).sentences)
