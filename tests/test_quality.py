"""Metrics against values worked out by hand, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from compress.errors import BadInput, EmptyData
from compress.measure.points import drop
from compress.measure.quality import METRICS, Quality, better, choose, evaluate


@dataclass(frozen=True)
class Pair:
    inputs: tuple[Tensor, ...]
    target: Tensor | None


def measure(name: str, output: Tensor, target: Tensor | None, teacher=None) -> Quality:
    """The model is the identity, so that the outputs can be written down; two batches, to see the sums add up."""
    cut = max(1, len(output) // 3)
    targets = (None, None) if target is None else (target[:cut], target[cut:])
    batches = [Pair((output[:cut],), targets[0]), Pair((output[cut:],), targets[1])]
    return evaluate(nn.Identity(), batches, METRICS[name], teacher=teacher)


def test_top1_and_top5_count_samples():
    outputs = torch.eye(10)[torch.tensor([3, 1, 4, 1])] + torch.arange(10) * 0.01
    target = torch.tensor([3, 1, 9, 0])  # hits: the first two; 9 is among the five largest, 0 is not
    assert measure("top1", outputs, target) == Quality("top1", 0.5, 4)
    assert measure("top5", outputs, target).value == 0.75


def test_top5_of_a_model_with_three_classes_is_1():
    assert measure("top5", torch.rand(6, 3), torch.arange(6) % 3).value == 1


def test_perplexity_is_the_exponential_of_the_mean_surprise_and_classes_of_text_lie_last():
    metric, _ = choose("auto", "text", labeled=True)
    assert metric.name == "perplexity" and not metric.higher_is_better
    target = torch.tensor([[0, 1, 2, 2], [1, 1, 0, 2]])
    even = evaluate(nn.Identity(), [Pair((torch.zeros(2, 4, 3),), target)], metric)
    assert even.value == pytest.approx(3) and even.samples == 2  # three tokens, none likelier than the others
    shares = torch.tensor([[0.5, 0.25, 0.25]]).expand(2, 4, 3).log()
    nats = [-math.log(0.5 if t == 0 else 0.25) for t in target.flatten().tolist()]
    parts = [Pair((shares[:1],), target[:1]), Pair((shares[1:],), target[1:])]
    assert evaluate(nn.Identity(), parts, metric).value == pytest.approx(math.exp(sum(nats) / 8))
    assert drop(even, Quality("perplexity", 3.5, 2, False, 1.0)) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["top1", "agreement"])
def test_classes_of_text_lie_last_for_every_metric(name):
    metric, _ = choose(name, "text", labeled=True)
    target = torch.tensor([[0, 255, 1], [3, 2, 255]])  # 255 is a token like any other
    output = nn.functional.one_hot(target, 256).float()
    output[0, 0] = output[0, 0].flip(0)
    found = evaluate(nn.Identity(), [Pair((output,), target)], metric, teacher=lambda x: nn.functional.one_hot(target, 256))
    assert found.value == pytest.approx(5 / 6)


def test_tokens_that_do_not_fit_the_outputs_are_refused():
    metric, _ = choose("perplexity", "text", labeled=True)
    with pytest.raises(BadInput, match="tokens"):
        evaluate(nn.Identity(), [Pair((torch.zeros(2, 5, 3),), torch.zeros(2, 4, dtype=torch.long))], metric)
    with pytest.raises(BadInput, match="does not suit"):
        choose("perplexity", "classification", labeled=True)


def test_mean_absolute_error_takes_targets_with_or_without_an_axis_of_1():
    output = torch.tensor([[1.0], [2.0], [4.0]])
    assert measure("mae", output, torch.tensor([1.0, 0.0, 0.0])).value == 2
    assert measure("mae", output, torch.tensor([[1.0], [0.0], [0.0]])).value == 2


def test_psnr_is_averaged_over_images_and_stays_finite_for_equal_ones():
    target = torch.zeros(3, 1, 2, 2)
    output = torch.stack([torch.full((1, 2, 2), v) for v in (0.1, 0.01, 0.0)])
    assert measure("psnr", output, target).value == pytest.approx((20 + 40 + 100) / 3, abs=1e-3)  # float32 squares


def test_mean_iou_adds_up_over_batches_and_ignores_pixels_of_class_255():
    truth = torch.tensor([[[0, 0], [1, 1]], [[0, 1], [1, 255]], [[0, 0], [0, 0]]])
    guess = torch.tensor([[[0, 1], [1, 1]], [[0, 1], [0, 1]], [[0, 0], [0, 0]]])
    output = nn.functional.one_hot(guess, 3).permute(0, 3, 1, 2).float()
    zero, one = 6 / (6 + 1 + 1), 3 / (3 + 1 + 1)  # class 2 never occurs and does not count
    assert measure("miou", output, truth).value == pytest.approx((zero + one) / 2)


def test_agreement_compares_with_the_dense_model_and_needs_no_labels():
    output = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    assert measure("agreement", output, None, teacher=nn.Identity()).value == 1
    assert measure("agreement", output, torch.zeros(4), teacher=lambda x: -x).value == 0


@pytest.mark.parametrize("task", ["classification", "segmentation", "regression", "image", "text"])
def test_agreement_is_told_along_the_classes_of_the_task(task):
    metric, _ = choose("agreement", task, labeled=False)
    # The larger shift changes the largest entry of one row in three, and of no column.
    output = torch.tensor([[3.0, 1.0, 2.0], [4.0, 6.0, 5.0], [1.0, 0.0, 9.0]])
    output = output.unsqueeze(0) if task == "text" else output
    found = evaluate(nn.Identity(), [Pair((output,), None)], metric, teacher=lambda x: x + torch.tensor([0.0, 1.5, 0.0]))
    assert found.value == pytest.approx(1.0)
    flipped = evaluate(nn.Identity(), [Pair((output,), None)], metric, teacher=lambda x: x + torch.tensor([0.0, 4.0, 0.0]))
    assert flipped.value == pytest.approx(2 / 3)


def test_error_without_labels_is_that_to_the_dense_model():
    assert measure("mae", torch.ones(4, 2), None, teacher=lambda x: x + 0.5).value == 0.5


def test_the_first_of_several_outputs_is_measured():
    outputs = torch.eye(3)
    batch = [Pair((outputs,), torch.arange(3))]
    for model in (lambda x: (x, -x), lambda x: {"out": x, "aux": -x}, lambda x: [[x], -x]):
        assert evaluate(model, batch, METRICS["top1"]).value == 1


def test_measuring_leaves_modes_as_they_were():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    model[1].eval()
    before = [part.training for part in model.modules()]
    first, second = (evaluate(model, [Pair((torch.ones(5, 4),), torch.zeros(5).long())], METRICS["top1"]) for _ in range(2))
    assert [part.training for part in model.modules()] == before == [True, True, False, True]
    assert first == second and not model[1].num_batches_tracked


@pytest.mark.parametrize(
    ("task", "labeled", "name"),
    [
        ("classification", True, "top1"),
        ("classification", False, "agreement"),
        ("segmentation", True, "miou"),
        ("segmentation", False, "agreement"),
        ("regression", True, "mae"),
        ("image", True, "psnr"),
        ("image", False, "psnr"),
    ],
)
def test_the_metric_follows_from_the_task_and_is_told(task, labeled, name):
    metric, said = choose("auto", task, labeled)
    assert metric.name == name and name in said


def test_a_users_function_is_a_metric_in_its_own_units(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def worst(output, target): return (output - target).abs().max()\nworst.higher_is_better = False\n"
    )
    metric, said = choose(f"{tmp_path}/mine.py:worst", "regression", True)
    found = evaluate(nn.Identity(), [Pair((torch.tensor([[1.0], [3.0]]),), torch.zeros(2, 1))], metric)
    assert (found.value, found.higher_is_better, found.points) == (3, False, 1) and "worst" in said


def test_drops_are_points_for_shares_and_native_units_otherwise():
    assert drop(Quality("top1", 0.9, 1), Quality("top1", 0.895, 1)) == pytest.approx(0.5)
    assert drop(Quality("mae", 2.0, 1, False, 1.0), Quality("mae", 2.5, 1, False, 1.0)) == 0.5
    assert drop(Quality("psnr", 30.0, 1, True, 1.0), Quality("psnr", 31.0, 1, True, 1.0)) == -1


def test_better_knows_the_direction_of_each_metric():
    assert better(Quality("top1", 0.9, 1), Quality("top1", 0.8, 1))
    assert better(Quality("mae", 0.1, 1, False), Quality("mae", 0.2, 1, False))
    assert not better(Quality("top1", 0.9, 1), Quality("top1", 0.9, 1))


def test_outputs_that_are_nan_are_refused_instead_of_counted_as_class_0():
    with pytest.raises(BadInput, match="NaN"):
        measure("top1", torch.full((4, 3), math.nan), torch.zeros(4).long())


@pytest.mark.parametrize(
    ("name", "output", "target", "words"),
    [
        ("top1", torch.rand(4, 3), None, "needs labels"),
        ("agreement", torch.rand(4, 3), None, "none was given"),
        ("top1", torch.rand(4, 3), torch.zeros(4, 2).long(), "have no classes"),
        ("mae", torch.rand(4, 3), torch.rand(4, 2), "needed is the same"),
        ("miou", torch.rand(4, 2, 3, 3), torch.full((4, 3, 3), 7), "reach class 7"),
        ("miou", torch.rand(4, 2, 3, 3), torch.zeros(4, 2, 2).long(), "do not fit"),
    ],
)
def test_what_cannot_be_measured_is_refused(name, output, target, words):
    with pytest.raises(BadInput, match=words):
        measure(name, output, target)


def test_no_batch_is_refused():
    with pytest.raises(EmptyData, match="no sample"):
        evaluate(nn.Identity(), [], METRICS["top1"])


@pytest.mark.parametrize(
    ("name", "words"), [("f2", "known are auto, top1"), ("top1", "needs labels"), ("math:nothing", "no function")]
)
def test_a_metric_that_cannot_be_is_refused(name, words):
    with pytest.raises(BadInput, match=words):
        choose(name, "classification", labeled=False)


def test_a_model_that_gives_no_tensor_is_refused():
    with pytest.raises(BadInput, match="gives a str"):
        evaluate(lambda x: "a", [Pair((torch.ones(2),), None)], METRICS["mae"])


def test_a_metric_says_what_it_compares_with_where_that_is_not_the_label():
    def sentence(name: str, labeled: bool) -> str:
        return choose(name, "classification", labeled=labeled)[1]

    assert sentence("top1", True) == "Quality is top1."
    for labeled in (True, False):
        assert sentence("agreement", labeled) == "Quality is agreement, compared with the dense model."
    assert choose("mae", "regression", labeled=False)[1] == "Quality is mae, compared with the dense model."
