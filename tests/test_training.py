"""The training loop: that it learns, repeats, chooses on held-out data only, and refuses what cannot be trained."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

from compress.artifact import Artifact
from compress.checkpoint.load import load_model
from compress.commands.demo import make_demo
from compress.data import Data, Split, from_arrays, open_data
from compress.data.stores import Stored
from compress.errors import BadInput
from compress.graph.trace.trace import trace
from compress.measure.quality import METRICS, Quality, evaluate
from compress.progress import duration
from compress.recipe import make
from compress.stage import Context
from compress.stages.finetune import Finetune
from compress.training import distillation, reinitialized, train
from compress.training.loop import _as_good, rate
from compress.training.losses import objective


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits")


def small(classes: int = 10, channels: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(128, classes),
    )


def recipe(**settings):
    return make(**{"epochs": 2, "batch_size": 64, "lr": 1e-2, "seed": 1, **settings})


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(a.equal(b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_text_is_distilled_and_learnt_token_by_token():
    torch.manual_seed(0)
    output, dense, target = torch.randn(2, 5, 7), torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    flat = [x.flatten(0, 1) for x in (output, dense)]
    expected = distillation(*flat, "classification", 2.0)
    assert float(distillation(output, dense, "text", 2.0)) == pytest.approx(float(expected), rel=1e-5)  # float32
    loss, _ = objective(recipe(distill=0.0), "text", labeled=True, teacher=True)
    assert float(loss(output, target, None)) == pytest.approx(float(nn.functional.cross_entropy(flat[0], target.flatten())))


# --- learning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_learns_and_leaves_the_given_model_untouched(digits, optimizer):
    model = small()
    before = copy.deepcopy(model)
    found = train(model, digits, recipe(optimizer=optimizer, lr={"adamw": 1e-2, "sgd": 0.1}[optimizer]))
    assert same(model, before) and model.training
    assert [epoch.number for epoch in found.history] == [0, 1, 2]
    assert found.history[0].quality < 0.3 and found.history[found.best].quality > 0.5  # a guess is 0.1
    assert not found.module.training and next(found.module.parameters()).grad is None
    measured = evaluate(found.module, digits.held_out.batches(256), METRICS["top1"]).value
    assert measured == found.history[found.best].quality


@pytest.mark.parametrize(("precision", "computed"), [("auto", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_forward_passes_have_the_precision_asked_for_and_weights_stay_single(digits, precision, computed):
    model, seen = small(), set[torch.dtype]()

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            out = self.net(x)
            if self.training:
                seen.add(out.dtype)
            return out

    found = train(Watched(), digits, recipe(precision=precision), teacher=small())
    assert seen == {computed} and {p.dtype for p in found.module.parameters()} == {torch.float32}
    assert found.history[found.best].quality > 0.5


def test_a_training_repeats_exactly_and_leaves_the_random_state_alone(digits):
    model, state = small(), torch.get_rng_state()
    first, again, other = (train(model, digits, recipe(epochs=1, seed=s)).module for s in (1, 1, 2))
    assert same(first, again) and not same(first, other)
    assert torch.get_rng_state().equal(state)


def test_distillation_works_without_labels(digits):
    teacher = train(small(), digits, recipe(epochs=3)).module
    split = [
        Split(part.inputs, None, part.index, replace(digits.spec, labeled=False)) for part in (digits.train, digits.held_out)
    ]
    blind = Data(split[0], split[1], split[1], split[0].spec)
    found = train(small(), blind, recipe(epochs=3), teacher=teacher)
    assert found.metric == "agreement" and found.history[found.best].quality > 0.7  # agreement of a guess is 0.1


@pytest.mark.parametrize(("distill", "asked"), [(0.0, False), (0.5, True)])
def test_a_teacher_that_teaches_nothing_is_not_asked(digits, distill, asked):
    sizes = []

    class Teacher(nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return x.flatten(1)[:, :10]

    train(small(), digits, recipe(epochs=0.2, distill=distill, batch_size=77), teacher=Teacher())
    assert (77 in sizes) == asked


def test_distilling_a_model_into_itself_starts_at_loss_0(digits):
    output = torch.randn(6, 10)
    assert float(distillation(output, output, "classification", 2.0)) == pytest.approx(0, abs=1e-6)  # float32 log-softmax
    assert float(distillation(output, output, "regression", 2.0)) == 0


def test_distillation_is_the_divergence_times_the_squared_temperature():
    output, dense = torch.randn(4, 3), torch.randn(4, 3)
    p, q = (dense / 3).softmax(1), (output / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    assert float(distillation(output, dense, "classification", 3.0)) == pytest.approx(float(expected), rel=1e-5)  # float32


@pytest.mark.parametrize("kind", ["auto", "l1", "function"])
def test_regression_trains_with_each_loss(tmp_path, kind):
    x = torch.randn(200, 1, 4, 4)
    data = from_arrays({"x": x, "y": x.mean((1, 2, 3)) * 4})
    (tmp_path / "mine.py").write_text("def huber(output, target): return (output - target).abs().sqrt().mean()\n")
    loss = f"{tmp_path}/mine.py:huber" if kind == "function" else kind
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    found = train(model, data, recipe(epochs=8, batch_size=16, lr=3e-2, loss=loss))
    assert found.metric == "mae" and found.history[found.best].quality < 0.5 * found.history[0].quality


def test_segmentation_and_images_train_through_the_same_loop():
    x = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8)
    masks = from_arrays({"x": x, "y": (x[:, 0] > 127).long()})
    found = train(nn.Conv2d(1, 2, 1), masks, recipe(epochs=4, batch_size=8, lr=0.1))
    assert found.metric == "miou" and found.history[found.best].quality > 0.9
    pictures = from_arrays({"x": x, "y": x})
    found = train(nn.Conv2d(1, 1, 3, padding=1), pictures, recipe(epochs=4, batch_size=8, lr=3e-2))
    assert found.metric == "psnr" and found.history[found.best].quality > found.history[0].quality + 3  # dB: half the error


def test_the_first_of_several_outputs_is_trained(digits):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small()

        def forward(self, x):
            out = self.body(x)
            return {"out": out, "aux": out[:, :2]}

    assert train(Two(), digits, recipe(epochs=1)).history[-1].quality > 0.5


def test_a_traced_model_stays_a_traced_model(digits):
    found = train(symbolic_trace(small()), digits, recipe(epochs=0.2))
    assert isinstance(found.module, torch.fx.GraphModule)


# --- the loop's parts --------------------------------------------------------------------------------------------------


def test_training_that_has_plainly_failed_is_taken_back(digits):
    good = train(small(), digits, recipe(epochs=3)).module
    found = train(good, digits, recipe(epochs=1, lr=5.0, clip=0))
    assert found.best == 0 and same(found.module, good)
    assert any("Best epoch 0 of 1" in note for note in found.notes)


def with_validation(data: Data) -> Data:
    """The same data with the held-out part as a part of its own, which the dense model has not seen."""
    return replace(data, held_out=replace(data.held_out, inputs=(Stored(data.held_out.inputs[0].values),)))


def test_held_out_images_that_the_dense_model_has_seen_do_not_take_a_slightly_lower_epoch_back(digits):
    seen = replace(digits, train=digits.held_out)  # the model knows the held-out images by heart
    memory = train(small(), seen, recipe(epochs=100, batch_size=16)).module
    settings = recipe(epochs=0.2, lr=2e-2)
    found = train(memory, digits, settings)
    assert 0.8 < found.history[1].quality / found.history[0].quality < 0.96 and found.best == 1
    assert train(memory, with_validation(digits), settings).best == 0


def test_the_last_epoch_within_a_standard_error_of_the_best_is_chosen():
    def quality(value, metric="top1"):
        return Quality(metric, value, 100, metric != "mae")

    assert _as_good(quality(0.87), quality(0.9)) and not _as_good(quality(0.86), quality(0.9))  # sqrt(0.9 * 0.1 / 100) = 0.03
    assert not _as_good(quality(0.21, "mae"), quality(0.2, "mae")) and _as_good(quality(0.2, "mae"), quality(0.2, "mae"))


def test_patience_stops_a_training_that_gains_nothing(digits):
    good = train(small(), digits, recipe(epochs=3)).module
    found = train(good, with_validation(digits), recipe(epochs=9, lr=5.0, clip=0, patience=2))
    assert len(found.history) == 3


def test_fractions_of_epochs_count_in_steps_and_0_epochs_train_nothing(digits):
    shares: list[float] = []
    found = train(small(), digits, recipe(epochs=0.5), progress=lambda what, share, detail: shares.append(share))
    assert found.history[-1].number == pytest.approx(0.5) and shares[-1] == 1
    model = small()
    assert same(train(model, digits, recipe(epochs=0)).module, model)


def test_the_test_data_is_never_read(digits):
    class Untouchable(Stored):
        def read(self, index):
            raise AssertionError("the test data was read")

    test = replace(digits.test, inputs=(Untouchable(torch.zeros(0)),))
    assert train(small(), replace(digits, test=test), recipe(epochs=0.3)).history


def test_averaged_weights_are_what_is_measured_and_returned(digits):
    plain, averaged = (train(small(), digits, recipe(epochs=1, ema=e)) for e in (0.0, 0.9))
    assert not same(plain.module, averaged.module)
    measured = evaluate(averaged.module, digits.held_out.batches(256), METRICS["top1"]).value
    assert measured == averaged.history[averaged.best].quality


def test_fixed_parameters_stay_fixed_unless_all_are(digits):
    model = small()
    model[0].weight.requires_grad_(False)
    found = train(model, digits, recipe(epochs=1))
    assert found.module[0].weight.equal(model[0].weight) and not found.module[5].weight.equal(model[5].weight)
    model.requires_grad_(False)
    found = train(model, digits, recipe(epochs=1))
    assert not found.module[0].weight.equal(model[0].weight) and not found.module[0].weight.requires_grad
    assert any("all are trained" in note for note in found.notes)


def test_norms_whose_parameters_are_fixed_keep_their_running_statistics(digits):
    bare = nn.BatchNorm2d(4, affine=False)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), bare), nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()
    )
    model.append(nn.LazyLinear(10))
    example = next(digits.train.batches(2)).inputs
    model(*example)
    model[0].requires_grad_(False)
    traced = trace(model, example)
    assert [p.requires_grad for p in traced.parameters()] == [p.requires_grad for p in model.parameters()]
    found = train(traced, digits, recipe(epochs=1))
    before, after = traced.state_dict(), found.module.state_dict()
    same_ones = [name for name in before if torch.equal(before[name], after[name])]
    assert same_ones == [name for name in before if name.startswith("0.")]
    assert any("4 fixed parameters" in note and "running statistics of 2 norms" in note for note in found.notes)
    again, _ = reinitialized(traced, 0)
    assert all(p.requires_grad for p in again.parameters())


def test_a_model_that_calls_view_trains_in_the_layout_it_needs(digits):
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(512, 10)

        def forward(self, x):
            return self.fc(self.conv(x).relu().view(len(x), -1))

    found = train(Viewing(), digits, recipe(epochs=0.5), teacher=Viewing())
    assert len(found.history) == 2 and found.module.conv.weight.is_contiguous()


def test_the_learning_rate_warms_up_and_falls_to_almost_nothing():
    rates = [rate(step, 100, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1
    assert rates == rates[:11] + sorted(rates[11:], reverse=True) and 0 < rates[-1] < 0.001


def test_progress_tells_epoch_loss_and_time_left(digits):
    seen: list[tuple[str, float, str]] = []
    train(small(), digits, recipe(epochs=2), progress=lambda *told: seen.append(told))
    assert [share for _, share, _ in seen] == sorted(share for _, share, _ in seen)
    assert "epoch 2 of 2, loss" in seen[-1][2] and seen[-1][2].endswith("0 s left")
    assert [duration(s) for s in (5, 95, 3700)] == ["5.0 s", "1 min 35 s", "1 h 1 min"]


# --- refusals ----------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_training_with_what_to_do(digits):
    model = small()
    with torch.no_grad():
        model[5].bias[0] = math.inf
    with pytest.raises(BadInput, match=r"loss is .* at step 1 of .*Lower --lr \(now 0\.01\)"):
        train(model[:1] + nn.Sequential(nn.Flatten(), Exploding()), digits, recipe())


class Exploding(nn.Module):
    """Finite in eval mode, infinite in training: as weights that run away look to the loop."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(128, 10)

    def forward(self, x):
        return self.fc(x) * (math.inf if self.training else 1.0)


def test_labels_beyond_the_outputs_are_refused_before_training(digits):
    with pytest.raises(BadInput, match="reach class 9, the model has 4 outputs"):
        train(small(classes=4), digits, recipe())


@pytest.mark.parametrize(("loss", "words"), [("mse", "does not suit the task"), ("hinge", "known are auto")])
def test_a_loss_that_cannot_be_is_refused(digits, loss, words):
    with pytest.raises(BadInput, match=words):
        train(small(), digits, recipe(loss=loss))


def test_neither_labels_nor_a_teacher_is_refused():
    data = from_arrays({"x": torch.randn(20, 1, 8, 8)})
    with pytest.raises(BadInput, match="neither labels nor a dense model"):
        train(small(), data, recipe())


# --- fresh weights, the stage, the demo --------------------------------------------------------------------------------


def test_fresh_weights_are_all_new_by_seed_and_parameters_without_a_reset_are_named(digits):
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.token, self.scale = small(), nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.tensor([1.0, 3.0]))

        def forward(self, x):
            return self.body(x) + self.token.sum() * self.scale.sum()

    model = Token()
    model.body[1].running_mean += 5
    first, said = reinitialized(model, 0)
    assert same(first, reinitialized(model, 0)[0]) and not same(first, reinitialized(model, 1)[0])
    assert not first.body[0].weight.equal(model.body[0].weight) and not first.body[1].running_mean.any()
    assert first.token.abs().max() < 0.2 and first.scale.tolist() == [2, 2] and "token" in said


def context(data: Data, module, **settings) -> Context:
    dense = Artifact(symbolic_trace(module).eval(), (torch.zeros(1, 1, 8, 8),))
    return Context(dense, data, recipe(**settings), torch.device("cpu"))


def test_the_stage_trains_with_the_dense_model_as_teacher_and_notes_the_best_epoch(digits):
    dense = train(small(), digits, recipe(epochs=3)).module
    told = context(digits, dense)
    weak = replace(told.dense, module=symbolic_trace(small()).eval())
    result = Finetune()(weak, told)
    before, after = (evaluate(a.module, digits.test.batches(256), METRICS["top1"]).value for a in (weak, result))
    assert after > before + 0.4 and isinstance(result.module, torch.fx.GraphModule)
    assert any("Best epoch" in note for note in result.notes) and any("dense model's outputs" in note for note in result.notes)


def test_training_from_scratch_forgets_the_given_weights(digits):
    told = context(digits, small(), from_scratch=True, epochs=0)
    result = Finetune()(told.dense, told)
    assert not result.module.get_parameter("0.weight").equal(told.dense.module.get_parameter("0.weight"))
    assert any("drawn anew with seed 1" in note for note in result.notes)


def test_the_demo_net_is_saved_as_a_state_dict_that_loads_again(tmp_path, digits):
    made = make_demo(tmp_path, epochs=2)
    model = load_model(made.model, arch=made.arch).module
    assert evaluate(model, digits.test.batches(256), METRICS["top1"]).value == made.top1 > 0.8  # 0.98 after all epochs


@pytest.mark.slow
def test_the_demo_net_reaches_97_percent(tmp_path):
    assert make_demo(tmp_path).top1 > 0.97


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_cuda_learns_in_half_precision_and_comes_back_to_the_cpu(digits):
    found = train(small(), digits, recipe(), "cuda", teacher=small())
    assert found.history[found.best].quality > 0.5 and next(found.module.parameters()).device.type == "cpu"
