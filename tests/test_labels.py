"""Labels that outputs decide one by one: many that may hold at once, and one logit for two classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from compress.api import run
from compress.data import check_output, from_arrays, open_data
from compress.data.settings import make as settings
from compress.errors import BadInput
from compress.measure.labels import drawn
from compress.measure.points import drop
from compress.measure.quality import Quality, choose, evaluate
from compress.recipe import make
from compress.selection.scores import weight_products
from compress.statistics.drawn_labels import drawn_loss
from compress.training import distillation
from compress.training.losses import objective

RANDOM = np.random.default_rng(0)
X = RANDOM.integers(0, 255, (40, 8, 8)).astype(np.uint8)
LABELS = RANDOM.integers(0, 2, (40, 3))
TWO = np.arange(40) % 2


def says(data, *words: str) -> bool:
    return any(all(word in note for word in words) for note in data.notes)


# --- what targets stand for ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int64", "uint8", "float32", "bool"])
def test_zeros_and_ones_in_columns_are_labels_whatever_their_type(kind):
    data = from_arrays({"x": X, "y": LABELS.astype(kind)})
    assert data.spec.task == "multilabel" and data.spec.classes == ("0", "1", "2")
    assert says(data, "zeros and ones in 3 columns", "multilabel")
    target = next(data.train.batches(40)).target
    assert target is not None and target.dtype == torch.float32 and set(target.unique().tolist()) == {0, 1}


def test_rows_of_one_1_are_class_numbers_only_where_every_part_has_them():
    one_hot = np.eye(3, dtype=np.int64)[np.arange(40) % 3]
    arrays = {"x_train": X, "y_train": one_hot, "x_test": X}
    assert from_arrays({**arrays, "y_test": one_hot}).spec.task == "classification"
    assert from_arrays({**arrays, "y_test": LABELS}).spec.task == "multilabel"
    assert from_arrays({**arrays, "y_test": one_hot}, task="multilabel").spec.task == "multilabel"


@pytest.mark.parametrize("y", [TWO.astype(np.float32), TWO[:, None], TWO[:, None].astype(np.float32), TWO.astype(bool)])
def test_one_column_of_zeros_and_ones_is_two_classes(y):
    data = from_arrays({"x": X, "y": y})
    target = next(data.train.batches(5)).target
    assert data.spec.task == "classification" and data.spec.classes == ("0", "1")
    assert target is not None and target.dtype == torch.int64 and target.shape == (5,)
    assert from_arrays({"x": X, "y": y.astype(np.float32)}, task="regression").spec.task == "regression"


@pytest.mark.parametrize("y", [X[:, None] // 128, X[..., None] // 128, (X // 128).astype(np.float32)])
def test_masks_of_zeros_and_ones_are_two_classes(y):
    data = from_arrays({"x": X, "y": y})
    target = next(data.train.batches(5, augment=True)).target
    assert data.spec.task == "segmentation" and target is not None and target.shape == (5, 8, 8)


@pytest.mark.parametrize(
    ("y", "options", "words"),
    [
        (LABELS * 2 - 1, {}, "labels or values"),
        (np.where(LABELS, -1, LABELS[::-1]), {}, "labels or values"),
        (np.stack([X // 128] * 2, 1), {}, "masks or images"),
        (np.tile([0, 1, 1], (40, 1)), {}, "the same labels"),
        (LABELS, {"classes": ("a", "b")}, "3 labels, but 2 names"),
        (LABELS * 2, {"task": "multilabel"}, "needed are n,k zeros and ones"),
        (LABELS, {"task": "classification"}, "needed are n class numbers"),
    ],
)
def test_labels_that_may_be_several_things_or_nothing_are_refused(y, options, words):
    with pytest.raises(BadInput, match=words):
        from_arrays({"x": X, "y": y}, **options)


def test_what_may_be_several_things_is_taken_as_a_settings_file_says(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=LABELS * 2.0 - 1)
    (tmp_path / "data.toml").write_text('source = "a.npz"\ntask = "regression"\n')
    assert open_data(tmp_path / "data.toml").spec.task == "regression"
    np.savez(tmp_path / "b.npz", x=X, y=LABELS)
    (tmp_path / "data.toml").write_text('source = "b.npz"\ntask = "multilabel"\nclasses = ["red", "round", "new"]\n')
    assert open_data(tmp_path / "data.toml").spec.classes == ("red", "round", "new")


def test_images_without_labels_take_the_task_of_the_outputs_from_a_settings_file(tmp_path):
    for i in range(20):
        Image.fromarray(X[i]).save(tmp_path / f"{i}.png")
    assert says(open_data(tmp_path), "no labels", 'task = "multilabel"')
    assert open_data(tmp_path, settings=settings(task="multilabel")).spec.task == "multilabel"


def test_a_label_that_never_changes_is_named():
    fixed = LABELS * [1, 1, 0]
    assert says(from_arrays({"x": X, "y": fixed}, classes=("red", "round", "new")), "the same on all", "new")


@pytest.mark.parametrize("memory", [1.0, 1e-9])
def test_items_of_a_data_set_are_understood_like_arrays(tmp_path, memory):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "x = np.random.default_rng(0).random((400, 1, 8, 8)).astype(np.float32)\n"
        "many, two, hot = np.arange(1200).reshape(400, 3) % 7 % 2, np.arange(400) % 2, np.eye(3)[np.arange(400) % 3]\n"
        "late = many * 1; late[350:] = 5\n"
        + "".join(f"def f_{name}(): return list(zip(x, {name}))\n" for name in ("many", "hot", "late"))
        + "def f_two(): return list(zip(x, two.astype(np.float32)))\n"
    )

    def opened(name: str):
        return open_data(f"{tmp_path}/mine.py:f_{name}", settings=settings(memory_gb=memory))

    expected = {"many": ("multilabel", (4, 3)), "two": ("classification", (4,)), "hot": ("classification", (4,))}
    for name, (task, shape) in expected.items():
        data = opened(name)
        target = next(data.train.batches(4)).target
        assert data.spec.task == task and target is not None and target.shape == shape, name
    if memory < 1:
        with pytest.raises(BadInput, match="other numbers than 0 and 1"):
            list(opened("late").train.batches(400))


# --- quality ------------------------------------------------------------------------------------------------------------


class Pair:
    def __init__(self, x: Tensor, target: Tensor | None):
        self.inputs, self.target = (x,), target


def measured(name: str, task: str, output: Tensor, target: Tensor | None, teacher=None) -> Quality:
    metric, _ = choose(name, task, labeled=target is not None)
    pairs = [
        Pair(output[:1], target if target is None else target[:1]),
        Pair(output[1:], target if target is None else target[1:]),
    ]
    return evaluate(nn.Identity(), pairs, metric, teacher=teacher)


OUTPUT = torch.tensor([[3.0, -1.0, 0.5], [-2.0, -0.1, 4.0]])
RIGHT = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]])


def test_f1_is_the_mean_over_labels_and_the_default():
    found = measured("auto", "multilabel", OUTPUT, RIGHT)
    # Label 0: one found, one missed; label 1 neither occurs nor is predicted; label 2: one found, one wrong.
    assert found.metric == "f1" and found.value == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert found.higher_is_better and drop(found, Quality("f1", 0.5, 2)) == pytest.approx(100 * (2 / 3 - 0.5))


def test_label_accuracy_counts_labels():
    assert measured("label_accuracy", "multilabel", OUTPUT, RIGHT).value == pytest.approx(4 / 6)


def test_labels_without_a_target_are_those_of_the_dense_model():
    assert measured("auto", "multilabel", OUTPUT, None, teacher=lambda x: x * 3).value == 1
    assert measured("auto", "multilabel", OUTPUT, None, teacher=lambda x: -x).value == 0


@pytest.mark.parametrize("name", ["top1", "agreement", "mae"])
@pytest.mark.parametrize("labeled", [True, False])
def test_metrics_that_mean_nothing_for_labels_are_refused(name, labeled):
    with pytest.raises(BadInput, match="needed is f1 or label_accuracy"):
        choose(name, "multilabel", labeled)


@pytest.mark.parametrize("output", [torch.tensor([0.1, -3.0, 2.0, -0.1]), torch.tensor([[0.1], [-3.0], [2.0], [-0.1]])])
def test_one_logit_is_two_classes_with_the_threshold_0(output):
    assert measured("top1", "classification", output, torch.tensor([1, 0, 0, 0])).value == 0.75
    assert measured("agreement", "classification", output, None, teacher=lambda x: -x).value == 0


def test_one_logit_per_pixel_is_two_classes():
    output = torch.tensor([[[[1.0, -1.0]]], [[[1.0, -1.0]]]])
    target = torch.tensor([[[1, 1]], [[1, 255]]])
    # Class 0: nothing found of one predicted; class 1: two of three.
    assert measured("miou", "segmentation", output, target).value == pytest.approx((0 + 2 / 3) / 2)


# --- training and calibration -------------------------------------------------------------------------------------------


def loss_of(task: str, **given):
    return objective(make(**{"distill": 0.0, **given}), task, labeled=True, teacher=True)[0]


def test_labels_are_learned_by_binary_cross_entropy_and_distilled_by_sigmoids():
    expected = functional.binary_cross_entropy_with_logits(OUTPUT, RIGHT)
    assert torch.allclose(loss_of("multilabel")(OUTPUT, RIGHT, None), expected)
    p, q = (OUTPUT / 2).sigmoid().double(), (RIGHT / 2).sigmoid().double()
    by_hand = 4 * (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).mean()
    assert float(distillation(OUTPUT, RIGHT, "multilabel", 2.0)) == pytest.approx(float(by_hand), rel=1e-5)  # float32 inside


def test_one_logit_is_learned_by_binary_cross_entropy_and_distilled_by_its_sigmoid():
    z, y = torch.tensor([0.5, -2.0, 3.0]), torch.tensor([1, 0, 0])
    expected = functional.binary_cross_entropy_with_logits(z, y.float())
    for output in (z, z[:, None]):
        assert torch.allclose(loss_of("classification")(output, y, None), expected)
    assert float(distillation(z[:, None], -z[:, None], "classification", 1.0)) == pytest.approx(
        float((z * (z.sigmoid() - (-z).sigmoid())).mean()), rel=1e-5
    )  # KL of Bernoulli(s(-z)) from Bernoulli(s(z)) is z (s(z) - s(-z)); float32 inside
    masks, logits = torch.tensor([[[1, 255]]]), torch.tensor([[[[0.3, 9.0]]]])
    pixel = functional.binary_cross_entropy_with_logits(torch.tensor(0.3), torch.tensor(1.0))
    assert torch.allclose(loss_of("segmentation")(logits, masks, None), pixel)


def test_the_loss_is_said_by_name():
    assert "bce" in objective(make(), "multilabel", labeled=True, teacher=True)[1]


@pytest.mark.parametrize(("task", "loss"), [("multilabel", "mse"), ("multilabel", "cross_entropy"), ("regression", "bce")])
def test_a_loss_of_another_task_is_refused(task, loss):
    with pytest.raises(BadInput, match="does not suit"):
        loss_of(task, loss=loss)


@pytest.mark.parametrize(("task", "outputs"), [("classification", 1), ("multilabel", 3)])
def test_calibration_draws_labels_as_the_outputs_decide_them(task, outputs):
    generator = torch.Generator().manual_seed(0)
    z = torch.full((4000, outputs), 1.0)
    labels = drawn(z, task, generator)
    assert labels is not None and abs(float(labels.float().mean()) - 0.731) < 0.03  # sigmoid(1); 4 standard errors of 4000
    z.requires_grad_(True)
    (gradient,) = torch.autograd.grad(drawn_loss(z, task, generator), z)
    assert float(gradient.square().mean()) == pytest.approx(0.731 * 0.269, abs=0.02)  # p (1 - p), the Fisher information


@pytest.mark.parametrize(("task", "outputs"), [("classification", 1), ("multilabel", 3)])
def test_taylor_scores_use_the_labels(task, outputs):
    module, x = nn.Linear(4, outputs), torch.randn(8, 4)
    labels = (torch.arange(8) % 2) if outputs == 1 else torch.tensor(LABELS[:8]).float()
    found = weight_products(module, [((x,), labels)], torch.device("cpu"), 0, task)  # pyright: ignore[reportArgumentType]
    loss = functional.binary_cross_entropy_with_logits(module(x), labels.float().view(8, outputs))
    (gradient,) = torch.autograd.grad(loss, [module.weight])
    assert torch.allclose(found["weight"], (module.weight * gradient).abs(), atol=1e-6)  # float32 sums of 8


# --- runs ---------------------------------------------------------------------------------------------------------------


def test_what_a_lone_output_decides_is_said_and_a_wrong_number_of_outputs_refused():
    two, many = from_arrays({"x": X, "y": TWO}), from_arrays({"x": X, "y": LABELS})
    assert "one output for two classes" in check_output(two, (1, 1))[0]
    assert "above 0" in check_output(many, (1, 3))[0]
    assert "taken as a logit" in check_output(from_arrays({"x": X}), (1, 1))[0]
    with pytest.raises(BadInput, match=r"targets have the shape \(3,\)"):
        check_output(many, (1, 4))
    ten = from_arrays({"x": X, "y": np.arange(40) % 10})
    with pytest.raises(BadInput, match="--metric and --loss of your own"):
        check_output(ten, (1, 1))
    assert "left to the metric and loss" in check_output(ten, (1, 1), own=True)[0]


def net(folder: Path, outputs: int, *more: nn.Module) -> str:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, outputs), *more,
    )  # fmt: skip
    torch.save(made.eval(), folder / "model.pt")
    return str(folder / "model.pt")


QUICK = {"target": "macs=0.5", "method": "magnitude", "depth": 0, "align": 1, "rounds": 5, "epochs": 1, "device": "cpu"}


@pytest.mark.parametrize(("y", "outputs", "metric"), [(TWO, 1, "top1"), (TWO.astype(np.float32), 1, "top1"), (LABELS, 3, "f1")])
@pytest.mark.filterwarnings("ignore::compress.errors.CompressWarning")  # of an untrained model
def test_a_run_takes_labels_through_every_stage(tmp_path, y, outputs, metric):
    np.savez(tmp_path / "data.npz", x=X, y=y)
    export = ("onnx", "onnx-fp16")
    report = run(net(tmp_path, outputs), data=str(tmp_path / "data.npz"), out=tmp_path / "out", export=export, **QUICK)
    assert [e.closeness is None or e.closeness.agreement for e in report.exports][1] is None  # no largest output decides
    assert report.result.quality is not None and report.result.quality.metric == metric
    assert report.result.quality.higher_is_better and report.result.quality.points == 100


@pytest.mark.filterwarnings("ignore::compress.errors.CompressWarning")
def test_a_metric_and_a_loss_of_ones_own_say_what_the_outputs_mean(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def right(o, y): return ((o[:, 0] * 3).round() == y).float().mean()\n"
        "def loss(o, y): return (o[:, 0] * 3 - y).abs().mean()\n"
    )
    np.savez(tmp_path / "data.npz", x=X, y=np.arange(40) % 4)
    own = {"metric": f"{tmp_path}/mine.py:right", "loss": f"{tmp_path}/mine.py:loss"}
    given = {**QUICK, "data": str(tmp_path / "data.npz"), "method": "taylor"}
    assert run(net(tmp_path, 1), out=tmp_path / "out", **given, **own).result.quality
    with pytest.raises(BadInput, match="reach class 3, the model has 1 output\\."):
        run(net(tmp_path, 1), out=tmp_path / "refused", **given)


@pytest.mark.parametrize("more", [(nn.Sigmoid(),), (nn.Sigmoid(), nn.Flatten())])
@pytest.mark.parametrize(("y", "outputs"), [(TWO, 1), (LABELS, 3)])
def test_a_sigmoid_at_the_end_is_refused_since_every_label_would_hold(tmp_path, more, y, outputs):
    np.savez(tmp_path / "data.npz", x=X, y=y)
    with pytest.raises(BadInput, match="ends in a sigmoid"):
        run(net(tmp_path, outputs, *more), data=str(tmp_path / "data.npz"), out=tmp_path / "out", **QUICK)
