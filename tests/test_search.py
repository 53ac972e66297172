"""A search for channel counts: the wall, the quick refit, the reward, the agent, and going on after a kill."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.artifact import Artifact, apply
from compress.commands.demo import make_demo
from compress.data import from_arrays
from compress.edits import Keep, Plan
from compress.entropy.moments import Moments
from compress.entropy.ridge import ridge
from compress.errors import BadInput, Infeasible, Interrupted, MissingPackage, UnsupportedModel
from compress.graph.channels.solve import solve
from compress.graph.trace.trace import trace
from compress.measure.cost import cost
from compress.pipeline.run import run
from compress.recipe import make
from compress.stage import Context
from compress.stages import search as stage_module
from compress.stages.search import Search
from compress.statistics.layers import layers

pytest.importorskip("gymnasium")
pytest.importorskip("stable_baselines3")

from gymnasium.utils.env_checker import check_env

from compress.search import agents, episodes, rewards
from compress.search.gym_environment import Pruning
from compress.search.task import Task, choice, task
from compress.search.widths import LEAST

INPUT = (torch.zeros(1, 3, 8, 8),)


class Net(nn.Module):
    """A residual stream, a depthwise convolution, and a classifier behind a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 8, 3, padding=1)
        self.wide, self.deep = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pool, self.fc = nn.MaxPool2d(4), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return self.fc(self.pool(torch.relu(self.deep(self.wide(x)))).flatten(1))


@pytest.fixture(scope="module")
def dense() -> Artifact:
    torch.manual_seed(0)
    net = Net()
    for norm in (net.norm, net.norm1):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.running_mean)
    return Artifact(trace(net.eval(), INPUT), INPUT)


def context(dense: Artifact, scratch: Path | None = None, **settings: object) -> Context:
    drawn = np.random.default_rng(0)
    images, labels = drawn.integers(0, 255, (300, 3, 8, 8), dtype=np.uint8), drawn.integers(0, 5, 300)
    data = from_arrays({"x_train": images, "y_train": labels, "x_test": images[:50], "y_test": labels[:50]}, name="drawn")
    recipe = make(**{"method": "rl-entropy", "calibration": 120, "target": "macs=0.5", "episodes": 8, **settings})
    return Context(dense, data, recipe, torch.device("cpu"), scratch=scratch)


@pytest.fixture(scope="module")
def made(dense: Artifact) -> Task:
    return task(dense, context(dense))


def played(environment: Pruning, seed: int) -> tuple[list[float], dict[str, object]]:
    """Rewards and the last info of an episode of drawn actions."""
    drawn, found, over, info = np.random.default_rng(seed), [], False, {}
    environment.reset()
    while not over:
        observation, reward, over, _, info = environment.step(drawn.random(1).astype(np.float32))
        assert environment.observation_space.contains(observation)
        found.append(reward)
    return found, info


# ---- the environment -------------------------------------------------------------------------------------------------------


def test_the_environment_passes_gymnasiums_checker(made: Task):
    check_env(Pruning(made), skip_render_check=True)


def test_rewards_come_at_the_end_and_are_those_of_the_choice(made: Task):
    found, info = played(Pruning(made), 0)
    assert found[:-1] == [0.0] * (len(made.widths.groups) - 1)
    assert found[-1] == pytest.approx(made.outcome(info["counts"]).reward) != 0


def test_a_step_after_the_end_is_refused(made: Task):
    environment = Pruning(made)
    played(environment, 0)
    with pytest.raises(ValueError, match="reset"):
        environment.step(np.zeros(1, np.float32))


@pytest.mark.parametrize("target", ["macs=0.5", "params=0.3", "size=6KB"])
@pytest.mark.parametrize("align", [1, 4])
def test_no_row_of_actions_breaks_the_wall(dense: Artifact, target: str, align: int):
    widths = choice(dense, context(dense, target=target), align)
    counted = cost(dense.module, dense.inputs)
    for seed in range(6):
        shares = np.random.default_rng(seed).random(len(widths.groups)) ** (seed % 3)
        counts = widths.replay(shares)
        assert all(n % align == 0 and LEAST * g.channels <= n for g, n in zip(widths.groups, counts.values(), strict=True))
        edits = (Keep(g.name, g.channels, tuple(range(counts[g.name]))) for g in widths.groups)
        small = apply(Plan(tuple(e for e in edits if len(e.keep) < e.channels)), dense)
        now = cost(small.module, small.inputs)
        ratio = {"m": now.macs / (0.5 * counted.macs), "p": now.params / (0.3 * counted.params), "s": now.weight_bytes / 6000}
        assert ratio[target[0]] <= 1 + 1e-9
        rest = list(counts.values())
        assert rest[-1] == widths.most(rest[:-1])  # nothing is left that the last group could have kept
    generous = widths.replay([1.0] * len(widths.groups))
    assert next(iter(generous.values())) == widths.most([])  # the first group takes all that the wall leaves
    frugal = widths.replay([0.0] * len(widths.groups))
    assert next(iter(frugal.values())) == widths.least([]) <= widths.most([])


def test_shares_are_rounded_to_the_nearest_count_behind_the_wall(dense: Artifact):
    widths = choice(dense, context(dense, target="macs=0.25"))
    assert widths.kept([], 0.49) == 4 and widths.kept([], 0.0) == 2  # of 8 channels, a fifth at least
    assert choice(dense, context(dense, target="macs=0.9")).kept([], 0.0) > 2  # the others alone could not spend so much


def test_a_target_that_the_search_cannot_reach_names_one_that_it_can(dense: Artifact):
    with pytest.raises(Infeasible, match=r"it goes down to macs=0\.\d+") as refusal:
        choice(dense, context(dense, target="macs=0.02"))
    reachable = str(refusal.value).split("goes down to ")[1].split(". ")[0]
    widths = choice(dense, context(dense, target=reachable))
    assert widths.cost(np.array([counts[0] for counts in widths.allowed], dtype=float)) <= widths.target
    with pytest.raises(BadInput, match="--tolerance"):
        choice(dense, context(dense, target=None, tolerance=0.1))


# ---- the quick refit -------------------------------------------------------------------------------------------------------


def test_nothing_removed_is_the_dense_model(dense: Artifact, made: Task):
    whole = made.shrinker({group.name: group.channels for group in made.widths.groups})
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(whole(x), dense.module(x), atol=1e-5)  # norms are folded
    assert made.outcome({group.name: group.channels for group in made.widths.groups}).entropy == pytest.approx(1.0)


def test_a_layer_that_lost_inputs_is_the_ridge_regression_on_those_left(dense: Artifact):
    now = context(dense)
    found = task(dense, now)
    half = {group.name: group.channels // 2 for group in found.widths.groups}
    small, _ = found.shrinker.refitted(half)
    folded, one = found.shrinker.module, layers(found.shrinker.module)["conv2"]
    batch = next(now.data.train.batches(120, limit=120)).inputs[0]
    with torch.no_grad():
        y = torch.relu(folded.conv1(torch.relu(folded.stem(batch))))
        moments, every = Moments(), one.places(folded.conv2(y), 10**9, torch.Generator())
        moments.add(one.rows(y, every), one.targets(folded.conv2(y), every))
    kept = found.shrinker.sweeps["conv1"].kept(half["conv1"])
    columns = (torch.tensor(kept)[:, None] * 9 + torch.arange(9)).flatten()
    out = found.shrinker.sweeps["stem"].kept(half["stem"])
    expected = ridge(moments, columns)
    # The task's moments come from sampled positions of the same images, so they agree only roughly.
    weight = small.conv2.weight.flatten(1)
    assert weight.shape == (4, 54)
    assert torch.linalg.norm(weight - expected.weight[out]) < 0.25 * torch.linalg.norm(expected.weight[out])
    sliced = folded.conv2.weight.flatten(1)[out][:, columns]
    assert torch.linalg.norm(weight - expected.weight[out]) < 0.8 * torch.linalg.norm(sliced - expected.weight[out])
    assert torch.allclose(small.conv2.bias, expected.bias[out], atol=0.1)


def test_every_output_of_a_smaller_model_has_the_mean_and_deviation_of_the_dense_one(made: Task):
    counts = {group.name: group.channels // 2 for group in made.widths.groups}
    small, seen = made.shrinker(counts), {}
    dead = 0
    for path in ("stem", "conv1", "conv2", "wide", "deep", "fc"):
        small.get_submodule(path).register_forward_hook(lambda part, given, y, path=path: seen.update({path: y}))
    with torch.no_grad():
        small(*made.shrinker.images)
    for path, group in {"stem": "stem", "conv1": "conv1", "conv2": "stem", "wide": "wide", "deep": "wide", "fc": None}.items():
        kept = slice(None) if group is None else made.shrinker.sweeps[group].kept(counts[group])
        rows = seen[path].movedim(1, 0).flatten(1)
        mean, deviation = (t[kept] for t in made.shrinker.spread[path])
        assert torch.allclose(rows.mean(1), mean, atol=1e-4)
        dead += int((rows.std(1, correction=0) < 1e-5).sum())
        varied = rows.std(1, correction=0) > 1e-5
        assert torch.allclose(rows.std(1, correction=0)[varied], deviation[varied], rtol=1e-3)
    assert dead < 5


def test_depthwise_and_flattened_readers_follow_their_groups(dense: Artifact, made: Task):
    small = made.shrinker({"wide": 5})
    assert small.wide.out_channels == small.deep.groups == 5 and small.fc.in_features == 20
    with torch.no_grad():
        assert small(torch.randn(2, 3, 8, 8)).shape == (2, 5)


# ---- the reward ------------------------------------------------------------------------------------------------------------


def test_dead_channels_earn_nothing(made: Task):
    dead = made.shrinker({group.name: group.channels for group in made.widths.groups})
    with torch.no_grad():
        dead.deep.weight.zero_()  # nothing but the last maps changes
    outcome = made.judge(dead)
    assert outcome.entropy == pytest.approx(1.0) and outcome.reward == pytest.approx(-1.0)
    assert outcome.constant is not None and outcome.constant >= 16 / 60  # of the maps of five convolutions
    with torch.no_grad():
        dead.deep.weight[:8] = 1.0
    assert made.judge(dead).entropy != pytest.approx(1.0)


def test_the_rewards_are_what_they_say(dense: Artifact, made: Task):
    counts = {group.name: group.channels // 2 for group in made.widths.groups}
    plain = made.outcome(counts)
    assert plain.reward == -plain.entropy != -1
    accuracy = task(dense, context(dense, reward="accuracy")).outcome(counts)
    assert accuracy == rewards.Outcome(plain.quality, plain.quality)
    mixed = task(dense, context(dense, reward="mixed")).outcome(counts)
    assert mixed.reward == pytest.approx(plain.quality - plain.entropy)
    aura = task(dense, context(dense, spatial="aura")).outcome(counts)
    assert aura.entropy not in (plain.entropy, None)


def test_models_without_maps_or_with_constant_maps_only_are_refused(made: Task):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 5))
    flat = Artifact(trace(linear.eval(), INPUT), INPUT)
    with pytest.raises(UnsupportedModel, match="--reward accuracy"):
        Search().check(flat, context(flat))
    Search().check(flat, context(flat, reward="accuracy", target="params=0.5"))
    module = made.shrinker({})
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                part.weight.zero_()
    with pytest.raises(UnsupportedModel, match="Every feature map of the model is constant"):
        rewards.judge(module, "entropy", made.judge.batches, made.judge.metric, torch.device("cpu"), "pairwise")


# ---- the agent -------------------------------------------------------------------------------------------------------------


def test_the_cut_off_normal_stays_inside_and_keeps_its_shape():
    draws = [agents.truncated_normal(0.9, 0.3, u) for u in np.linspace(0.001, 0.999, 999)]
    assert min(draws) >= 0 and max(draws) <= 1 and draws == sorted(draws)
    inside = np.random.default_rng(0).normal(0.9, 0.3, 200_000)
    assert np.mean(draws) == pytest.approx(inside[(inside > 0) & (inside < 1)].mean(), abs=0.005)
    assert agents.truncated_normal(0.3, 1e-9, 0.5) == pytest.approx(0.3)


def test_the_agent_learns_what_is_rewarded(made: Task):
    # Worth is known by the shares alone: most of the first group, little of the second.
    environment, count, wanted = Pruning(made), 80, (0.8, 0.2)
    agent = agents.Ddpg(environment, 2, count, seed=0)
    seen = [np.full(11, i / 2, dtype=np.float32) for i in range(3)]
    with agents.own_randomness():
        for number in range(count):
            shares = [agent.act(seen[i], number) for i in range(2)]
            steps = [agents.Step(seen[i], share, seen[i + 1]) for i, share in enumerate(shares)]
            agent.learn(steps, -sum((share - best) ** 2 for share, best in zip(shares, wanted, strict=True)), number)
    assert [agent.act(seen[i], 10_000) for i in range(2)] == pytest.approx(wanted, abs=0.2)


def test_an_agent_learns_from_what_it_asked_for_and_not_from_what_the_wall_made_of_it(made: Task, tmp_path: Path):
    class Least:
        def __init__(self) -> None:
            self.learned: list[float] = []

        def act(self, observation: np.ndarray, episode: int) -> float:
            return 0.01

        def learn(self, steps: Sequence[agents.Step], reward: float, episode: int) -> None:
            self.learned += [step.action for step in steps]

    first, again = Least(), Least()
    done = episodes.search(Pruning(made), first, 1, tmp_path)
    episodes.search(Pruning(made), again, 1, tmp_path)
    assert min(done[0].shares) > 0.1, "the wall raised it"
    assert first.learned == again.learned == [0.01] * len(made.widths.groups)


def test_a_search_that_was_killed_goes_on_as_if_nothing_had_happened(made: Task, tmp_path: Path):
    def searched(scratch: Path, count: int, task: Task = made) -> list[episodes.Episode]:
        environment = Pruning(task)
        return episodes.search(environment, agents.Ddpg(environment, len(made.widths.groups), 12, seed=3), count, scratch)

    with agents.own_randomness():
        whole = searched(tmp_path / "whole", 12)
        searched(tmp_path / "killed", 7)
    evaluated: list[int] = []
    counting = dataclasses.replace(made, judge=lambda module: evaluated.append(1) or made.judge(module))  # type: ignore[arg-type]
    with agents.own_randomness():
        rest = searched(tmp_path / "killed", 12, counting)
    assert rest == whole and len(evaluated) == 5
    assert episodes.recorded(tmp_path / "killed") == whole


def test_the_callers_random_numbers_go_on():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with agents.own_randomness():
        random.seed(5), np.random.rand(7), torch.manual_seed(3)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


# ---- the stage -------------------------------------------------------------------------------------------------------------


def test_the_stage_carries_out_the_best_episode(dense: Artifact, tmp_path: Path):
    now = context(dense, tmp_path)
    result = Search()(dense, now)
    macs = cost(result.module, result.inputs).macs / cost(dense.module, dense.inputs).macs
    assert macs <= 0.5
    done = episodes.recorded(tmp_path)
    assert len(done) == 8
    best = done[episodes.best(done)]
    assert best.reward == max(one.reward for one in done)
    groups = {g.name: g.channels for g in solve(dense.module, dense.inputs).groups}
    kept = {edit.layer: len(edit.keep) / groups[edit.layer] for edit in result.plan.edits if isinstance(edit, Keep)}
    assert {s for s in best.shares if s < 1} == set(kept.values())
    titles = {curve.title: curve for curve in result.curves}
    assert titles["Search: reward"].series[1].y[-1] == best.reward and titles["Search: quality"].levels["dense"] > 0
    assert any(f"the best is number {episodes.best(done) + 1}" in note for note in result.notes)
    # Again from the same scratch with other widths: nothing is searched twice, the wall holds.
    lines = (tmp_path / "episodes.jsonl").read_text()
    rounded = Search()(dense, dataclasses.replace(now, recipe=now.recipe.model_copy(update={"align": 4})))
    assert (tmp_path / "episodes.jsonl").read_text() == lines
    assert all(len(e.keep) % 4 == 0 for e in rounded.plan.edits if isinstance(e, Keep))
    assert cost(rounded.module, rounded.inputs).macs <= 0.5 * cost(dense.module, dense.inputs).macs


def test_a_missing_package_is_named_with_the_line_that_installs_it(dense: Artifact, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stage_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"gymnasium and stable-baselines3.*pip install 'entropress\[rl\]'") as refusal:
        Search().check(dense, context(dense))
    assert refusal.value.exit_code == 4


@pytest.mark.slow
def test_the_program_on_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = (Path(__file__).resolve().parent.parent / "docs" / "rl-entropy.md").read_text()
    make_demo(tmp_path / "demo-out", epochs=1)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    assert names["over"] and set(names["info"]["counts"]) == {"conv1", "conv2", "conv4"}  # type: ignore[index]


def test_a_run_that_is_killed_while_it_searches_goes_on(tmp_path: Path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(432, 10)
    )
    torch.save(net, tmp_path / "model.pt")
    recipe = make(
        model=str(tmp_path / "model.pt"),
        data="digits",
        allow_doubtful=True,
        method="rl-entropy",
        episodes=8,
        calibration=200,
        epochs=0,
        align=1,
        rounds=5,
        device="cpu",
    )
    told: list[str] = []

    def killing(what: str, share: float, detail: str) -> None:
        if what == "search" and share > 0.5:
            raise KeyboardInterrupt

    def counting(what: str, share: float, detail: str) -> None:
        told.extend([detail] if what == "search" else [])

    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "out", progress=killing)
    kept = list((tmp_path / "out" / "stages").glob("*search/episodes.jsonl"))
    assert len(kept) == 1 and len(kept[0].read_text().splitlines()) == 5
    resumed = run(recipe, tmp_path / "out", resume=True, progress=counting)
    whole = run(recipe, tmp_path / "whole")
    assert resumed.plan_sha256 == whole.plan_sha256 and resumed.curves == whole.curves
    assert len(told) == 8 and not list((tmp_path / "out" / "stages").glob("unfinished*"))
    assert resumed.result.macs <= 0.5 * resumed.stages[0].macs
