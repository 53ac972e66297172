"""report.html: what stands on it is what the records say, it loads nothing, and it is made of any run, broken ones included."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import compress
from compress.cli.main import cli
from compress.cli.options import given
from compress.curves import ActivationStates, TrainedEpoch, TrainingCurve
from compress.edits import Keep, Linearize, Merge, Plan
from compress.errors import BadInput
from compress.pipeline.given import IN_MEMORY as given_in_memory
from compress.recipe import make
from compress.report import sentences, table
from compress.report.html import headline
from compress.report.html.command_line import IN_MEMORY, command_line
from compress.report.html.page import _environment, page_of, run_view, viewed
from compress.report.html.plots import LEFT, WIDTH, labelled, steps, x_axis, y_axis
from compress.report.html.run_folder import opened
from compress.report.html.view import RunView
from compress.report.records import Broken, Exactness, FailedExport, LayerRecord, Outcome, Report, Stays
from tests.attacks.names import TEXTS
from tests.runs import edited, made_run
from tests.test_gate import DENSE, RESULT, changed, latency, quality, report

BAD = '<script>alert(1)</script>"><img src=x onerror=alert(1)> {{7*7}}'
DIRECTION = "\u202etxt.exe \u2066 עברית"
ROUNDS = tuple(2.0 + 0.01 * (i % 7) for i in range(40))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def whole(**fields: object) -> Report:
    """A report in which every section has something."""
    timed = latency(1.9, 1.8, 2.0, rounds_ms=ROUNDS, dense_rounds_ms=tuple(2 * one for one in ROUNDS))
    settings: dict[str, object] = {
        "max_drop": 1.0,
        "exactness": Exactness(worst_abs=2e-6, tolerance=1e-4, samples=64),
        "chance": 0.1,
        "layers": (
            LayerRecord(
                name="conv1", kind="Conv2d", width=64, width_after=24, params=576, params_after=216, macs=10, macs_after=4
            ),
            LayerRecord(
                name="bn1", kind="BatchNorm2d", width=64, width_after=24, params=128, params_after=48, macs=0, macs_after=0
            ),
            LayerRecord(name="relu1", kind="ReLU"),
            LayerRecord(name="fc", kind="Linear", width=10, width_after=10, frozen="it gives the model's output"),
        ),
        "stays": (Stays(activation="relu1", reason="padding cannot move"),),
        "activations": (ActivationStates("relu1", 64, 0.37, 0.1, 0.2),),
        "trainings": (TrainingCurve("finetune", "top1", (TrainedEpoch(0, None, 0.8, 0), TrainedEpoch(1, 0.5, 0.91, 3)), 1),),
        "notes": ("First note.", "No model.compressed was written: so it is."),
        "warnings": (),
    }
    return report(changed(RESULT, latency=timed), **(settings | fields))


def put(folder: Path, made: Report, plan: Plan | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_bytes(made.to_json().encode("utf-8", "backslashreplace"))
    (folder / "plan.json").write_text((plan or Plan((Keep("conv1", 64, tuple(range(24))),))).to_json())
    (folder / "recipe.toml").write_text(make(model="net.pt", data="images", target="macs=0.5").to_toml())
    return folder


def view(folder: Path) -> RunView:
    return run_view(opened(folder), "r1")


class _Page(HTMLParser):
    """Texts, tags and attributes as a browser finds them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside: list[str] = []
        self.raw: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.inside and self.inside[-1] in ("script", "style"):
            self.raw[self.inside[-1]] = self.raw.get(self.inside[-1], "") + data
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


# Values


@pytest.mark.parametrize("given", [True, False])
def test_a_target_that_a_contract_found_is_told_from_one_that_was_given(given: bool, tmp_path: Path):
    folder = put(tmp_path, whole(target="macs=0.6111"))
    asked = {"target": "macs=0.6111"} if given else {"max_drop": 1.0}
    (folder / "recipe.toml").write_text(make(model="net.pt", data="images", **asked).to_toml())
    page = page_of(folder)
    assert "target macs=0.6111" in page and ("target macs=0.6111, looked for" in page) == (not given)


def test_headline_figures_are_those_of_the_report_with_their_intervals(tmp_path: Path):
    made = whole()
    seen = view(put(tmp_path, made)).verdict
    assert seen.tone == "good" and [figure.name for figure in seen.figures] == ["Quality", "Speed", "Size"]
    first, second, third = seen.figures
    now, time = made.result.quality, made.result.latency
    assert now and time and now.drop_ci95
    assert first.numbers == (now.value, *now.drop_ci95) and second.numbers == (time.ratio, *time.ci95)
    assert third.numbers[0] == made.dense.file_bytes / made.result.file_bytes == 4
    text = _Page(page_of(tmp_path)).text
    for figure in (
        "92.70 %",
        "0.30 points worse",
        "-0.45 points to -0.10 points",
        "1.90 times as fast",
        "1.80 to 2.00",
        "4 times",
    ):
        assert figure in text, figure
    assert f"{sentences.count(made.dense.macs)} to {sentences.count(made.result.macs)}" in text


def test_every_stage_stands_at_its_own_figures(tmp_path: Path):
    made = whole()
    found = view(put(tmp_path, made)).stages
    assert found and "filled one is the result" in found.said and [mark.look for mark in found.choices[1].plot.marks] == [0, 1]
    assert [choice.key for choice in found.choices] == ["ms", "macs", "bytes"]
    macs = found.choices[1].plot
    far, near = (mark for mark in sorted(macs.marks, key=lambda mark: -mark.x))
    # The axis begins at 0, so that places are as far apart as the figures.
    start = x_axis([1.0], from_zero=True)(0.0)
    assert (near.x - start) / (far.x - start) == pytest.approx(made.result.macs / made.dense.macs, abs=0.001)
    assert near.y > far.y and near.y_ends and near.y_ends[0] < near.y < near.y_ends[1], "lower on the page is worse"


def test_a_layer_says_what_it_had_and_has_and_why(tmp_path: Path):
    plan = Plan((Keep("conv1", 64, tuple(range(24))), Linearize("relu2", 8), Merge(("conv3", "conv4"))))
    layers = view(put(tmp_path, whole(), plan)).layers
    assert layers
    rows = {row.name: row for row in layers.rows}
    assert (rows["conv1"].width, rows["conv1"].share, rows["conv1"].marks) == ("64 → 24", 37.5, ("narrower",))
    assert "40 of its 64 channels were removed" in rows["conv1"].reasons[0]
    assert rows["bn1"].marks == ("narrower",) and rows["fc"].marks == ("frozen",)
    assert rows["fc"].reasons == ("Why its channels are frozen: it gives the model's output.",)
    assert rows["relu1"].entropy == "0.37 bits" and "padding cannot move" in rows["relu1"].reasons[0]
    assert rows["relu2"].marks == ("linearized",) and rows["conv4"].reasons == ("It went into conv3.",)
    widths = layers.plots[0]
    assert [bar.kind for bar in widths.bars[:2]] == ["before", "after"]
    assert widths.bars[1].height / widths.bars[0].height == pytest.approx(24 / 64, abs=0.01)


def test_redundancy_and_milliseconds_come_from_what_analyze_printed(tmp_path: Path):
    put(tmp_path, whole())
    assert "analysis.json" in _Page(page_of(tmp_path)).text
    rows = [
        {
            "layer": "conv1",
            "channels": 64,
            "needed": 20,
            "error_at_half": 0.031,
            "activation": "relu1",
            "linearized_saves_ms": 0.25,
        },
        {"layer": "fc", "channels": 10, "frozen": "it is", "needed": None, "linearized_saves_ms": float("nan")},
    ]
    (tmp_path / "analysis.json").write_text(json.dumps(rows))
    layers = view(tmp_path).layers
    assert layers and {"redundancy", "milliseconds"} <= set(layers.columns)
    seen = {row.name: row for row in layers.rows}
    assert seen["conv1"].redundancy == "20 of 64 needed" and "3.1%" in " ".join(seen["conv1"].reasons)
    assert seen["relu1"].milliseconds == "0.25 ms" and seen["fc"].milliseconds == ""


def test_training_and_rounds_are_drawn_from_their_records(tmp_path: Path):
    seen = view(put(tmp_path, whole()))
    assert [graph.plot.title for graph in seen.trainings] == [
        "Training (finetune): top1 on held-out data",
        "Training (finetune): loss",
    ]
    assert "epoch 1 were taken: top1 0.91" in seen.trainings[0].note
    assert [len(graph.plot.marks) for graph in seen.trainings] == [1, 1], "one epoch has a loss, which is a point"
    distribution, in_time = seen.latency
    assert [len(line.points.split()) for line in (*distribution.plot.lines, *in_time.plot.lines)] == [40] * 4
    y = y_axis([*ROUNDS, *(2 * one for one in ROUNDS)])
    assert float(in_time.plot.lines[1].points.split()[3].split(",")[1]) == y(ROUNDS[3])


def test_what_a_run_does_not_hold_is_said_and_not_drawn(tmp_path: Path):
    bare = report(changed(RESULT, latency=None, quality=None), changed(DENSE, latency=None, quality=None))
    seen = view(put(tmp_path, bare, Plan()))
    assert seen.stages is None and seen.latency == () and seen.trainings == () and seen.exports is None
    text = _Page(page_of(tmp_path)).text
    for told in ("Quality was not measured", "Latency was not measured", "holds no training", "No file was exported"):
        assert told in text, told
    assert seen.verdict.tone == "unsure" and [figure.value for figure in seen.verdict.figures[:2]] == ["not measured"] * 2


def test_the_command_gives_the_settings_back():
    asked = make(
        model="my net.pt",
        data="im ages; rm -rf x",
        arch_kwargs={"num_classes": 10, "name": "a b"},
        input_shape="3x32x32",
        export="onnx,onnx-int8",
        cheap=True,
        target=None,
        tolerance=0.025,
        lr=1e-5,
        max_drop=0.3,
    )
    words = shlex.split(command_line(asked.model_dump(mode="json")))
    assert words[:3] == ["compress", "run", "my net.pt"]
    flags = cli.commands["run"].make_context("run", words[2:]).params
    settings = {name: value for name, value in given(flags).items() if name in type(asked).model_fields}
    assert make(**settings) == asked
    assert command_line({}) == ""


def test_a_run_of_what_stood_in_memory_gives_no_command(tmp_path: Path):
    assert given_in_memory == IN_MEMORY
    put(tmp_path, whole())
    (tmp_path / "recipe.toml").write_text(make(model=f"{IN_MEMORY} (Net, 1234)", data="images").to_toml())
    seen = view(tmp_path)
    assert seen.command == "" and "compress.run(model" in seen.lacks("command")


# Verdicts


def broken(outcome: Outcome) -> Broken:
    return Broken(outcome=outcome, export="onnx", metric="top1", lost=2.5, allowed=0.5, reason="it differs")


@pytest.mark.parametrize(
    ("fields", "tone", "words"),
    [
        ({}, "good", "It kept every limit"),
        ({"max_drop": None}, "unsure", "was not judged"),
        ({"max_drop": 0.4}, "unsure", "cannot be told with 10,000 samples"),
        ({"warnings": ("something is odd",)}, "unsure", "something is odd"),
        ({"failed_exports": (FailedExport(format="openvino", reason="no room"),)}, "unsure", "No openvino was written: no room"),
        *(({"outcome": one, "broken": broken(one)}, "bad", "") for one in Outcome if one is not Outcome.KEPT),
        (
            {"warnings": ("The dense model's top1 is no better than guessing among 10 classes.",), "chance": None},
            "bad",
            "guessing",
        ),
    ],
)
def test_only_a_result_that_nothing_speaks_against_reads_as_a_success(
    tmp_path: Path, fields: dict[str, object], tone: str, words: str
):
    seen = view(put(tmp_path, whole(**fields))).verdict
    assert seen.tone == tone and words in " ".join((seen.headline, *seen.sentences))
    if tone == "bad":
        assert "good" not in {figure.tone for figure in seen.figures}


@pytest.mark.parametrize(("top1", "words"), [(0.105, "no better than guessing"), (0.4, "Most of the quality is gone")])
def test_a_model_that_guesses_is_no_success_whatever_it_saves(tmp_path: Path, top1: float, words: str):
    made = report(changed(RESULT, quality=quality(top1)), chance=0.1, max_drop=100.0)
    seen = view(put(tmp_path, made)).verdict
    assert ("--max-drop 100 is kept cannot be told: the result is no better" in " ".join(seen.sentences)) == (top1 < 0.2)
    assert seen.tone == "bad" and words in seen.headline and "Kept" not in " ".join(seen.sentences)


@pytest.mark.parametrize(("interval", "gone"), [((-0.1, 0.9), False), ((0.1, 0.9), True)])
def test_quality_is_gone_only_where_samples_can_tell(interval: tuple[float, float], gone: bool):
    before, after = quality(0.003), quality(0.001).model_copy(update={"drop_ci95": interval})
    assert (sentences.gone(before, after) is not None) == gone


def test_milliseconds_that_stand_beside_each_other_are_of_the_same_rounds():
    # Its own row was timed minutes earlier, when the machine was slower.
    dense = changed(DENSE, latency=latency(1, 1, 1, p50_ms=9.0))
    timed = latency(2.0, 1.9, 2.1, p50_ms=2.0, rounds_ms=(2.0, 2.0, 2.2), dense_rounds_ms=(4.0, 4.0, 4.2))
    for found, ms in ((timed, "4 ms"), (timed.model_copy(update={"ratio": 2.5}).lean(), "5 ms")):
        made = report(changed(RESULT, latency=found), dense)
        assert f"2 ms a call, the original model {ms} in the same rounds" in headline.figures(made)[1].beside
        assert f"2 ({ms[0]})" in table.rows(made)[1]


def test_a_result_that_is_the_original_model_says_so(tmp_path: Path):
    assert "Nothing was changed" in view(put(tmp_path, report(changed(DENSE, stage="merge"), max_drop=1.0))).verdict.headline


def test_remarks_stand_in_the_order_of_their_weight(tmp_path: Path):
    made = whole(
        outcome=Outcome.QUALITY_LOST,
        broken=broken(Outcome.QUALITY_LOST),
        warnings=("doubtful",),
        failed_exports=(FailedExport(format="litert", reason="r"),),
    )
    weights = [remark.weight for remark in view(put(tmp_path, made)).remarks]
    assert weights == ["broken", "warning", "missing", "missing", "note"]


# The file


def test_the_page_loads_nothing_and_forbids_what_is_not_its_own(tmp_path: Path):
    page = _Page(page_of(put(tmp_path, whole())))
    loads = [(tag, key, value) for tag, found in page.tags for key, value in found.items() if key in LOADING]
    assert loads == [("a", "href", "#main")]
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "embed", "base", "form", "video", "audio"}
    assert not re.search(r"https?:|url\(|@import|fetch|XMLHttp|import\(|eval|innerHTML|document\.write", str(page.raw))
    policy = next(found["content"] for tag, found in page.tags if tag == "meta" and "http-equiv" in found) or ""
    assert "default-src 'none'" in policy and "'unsafe-inline'" not in policy.partition("script-src")[2]
    assert [tag for tag, found in page.tags if tag == "script" and found] == []


LOADING = ("src", "href", "srcset", "data", "action", "poster", "background", "xlink:href")


def test_every_picture_has_words_and_every_reference_an_aim(tmp_path: Path):
    page = _Page(page_of(put(tmp_path, whole())))
    ids = [found["id"] for _, found in page.tags if "id" in found]
    assert len(ids) == len(set(ids))
    pictures = [found for tag, found in page.tags if tag == "svg" and found.get("aria-hidden") != "true"]
    assert len(pictures) >= 8 and all(found.get("role") == "img" for found in pictures)
    aims = [aim for _, found in page.tags for key in AIMS if key in found for aim in (found[key] or "").split()]
    assert aims and set(aims) <= set(ids)
    assert all("scope" in found for tag, found in page.tags if tag == "th")


AIMS = ("aria-labelledby", "aria-controls", "for", "data-for")


@pytest.mark.parametrize("text", [BAD, DIRECTION, "🦊" * 30, "x" * 20_000, *(t for t in TEXTS if len(t) < 3000)])
def test_hostile_names_are_shown_and_obeyed_by_nothing(tmp_path: Path, text: str):
    layer = LayerRecord(name=text, kind=text, width=4, width_after=2, frozen=text)
    result = changed(RESULT, stage=text)
    made = report(
        result,
        method=text,
        verdict=text,
        notes=(text,),
        warnings=(text,),
        layers=(layer,),
        activations=(ActivationStates(text, 4, 0.5, 0, 0),),
        trainings=(TrainingCurve(text, text, (TrainedEpoch(0, 1, 1, 0),), 0),),
        stays=(Stays(activation=text, reason=text),),
    )
    harmless, written = _Page(page_of(put(tmp_path / "plain", whole()))), page_of(put(tmp_path / "n", made))
    found = _Page(written)
    kinds = {tag for tag, _ in harmless.tags}
    assert {tag for tag, _ in found.tags} <= kinds and found.raw == harmless.raw
    assert not any(key.startswith("on") for _, attributes in found.tags for key in attributes)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x1b]", written)
    assert len(written) < 2_000_000
    if len(text) < 60 and text.isprintable():
        assert " ".join(text.split()) in found.text


def test_a_page_of_150_layers_stays_small(tmp_path: Path):
    names = [f"features.stage{i // 10}.block{i % 10}.conv" for i in range(150)]
    made = whole(
        layers=tuple(
            LayerRecord(name=n, kind="Conv2d", width=256, width_after=100, params=10**6, params_after=10**5, frozen="why " * 30)
            for n in names
        ),
        activations=tuple(ActivationStates(f"{n}.relu", 256, 0.5, 0, 0) for n in names),
        stays=tuple(Stays(activation=f"{n}.relu", reason="no layers around it could become one") for n in names),
        notes=tuple(f"A note of some length, the number {i}." for i in range(100)),
    )
    plan = Plan(tuple(Keep(name, 256, tuple(range(100))) for name in names))
    written = page_of(put(tmp_path, made, plan))
    assert all(name in written for name in names) and len(written.encode()) < 1_000_000


def test_every_template_is_found_in_the_package():
    assert {"page.html.j2", "run.html.j2", "parts.html.j2", "style.css", "script.js"} <= set(_environment().list_templates())


# Runs that are old, broken or several


def test_a_run_without_a_report_shows_the_stages_that_were_finished(tmp_path: Path):
    plan = Plan((Keep("conv1", 64, (0, 1)),))
    for number, one in enumerate((DENSE, changed(DENSE, stage="remove", params=5))):
        folder = tmp_path / f"stages/{number:02d}-{one.stage}"
        folder.mkdir(parents=True)
        (folder / "stage.json").write_text(
            json.dumps({"record": one.model_dump(), "notes": ["A finding."], "warnings": [], "plan": plan.to_json()})
        )
    seen = view(tmp_path)
    assert seen.verdict.tone == "bad" and seen.verdict.headline == "This run has no result." and not seen.verdict.figures
    assert seen.stage_table and [row[0] for row in seen.stage_table.rows] == ["dense", "remove"]
    assert [remark.text for remark in seen.remarks] == ["A finding."]
    assert seen.stages and "none of them is a result" in seen.stages.said
    assert {mark.look for choice in seen.stages.choices for mark in choice.plot.marks} == {0}
    assert seen.layers and seen.layers.rows[0].marks == ("narrower",)
    assert "Finished stages: dense, remove" in _Page(page_of(tmp_path)).text


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"schema": 2', '"schema": 9', "newer"),
        ('"seed": 0', '"seed": "x"', "seed"),
        ("{", "", "cannot be read"),
    ],
)
def test_a_report_that_cannot_be_read_gives_no_figures_but_a_page(tmp_path: Path, old: str, new: str, words: str):
    text = put(tmp_path, whole()).joinpath("report.json").read_text()
    (tmp_path / "report.json").write_text(text.replace(old, new, 1) if new == "" else edited(text, old, new))
    seen = view(tmp_path).verdict
    assert seen.headline == "The report of this run cannot be used." and words in " ".join(seen.sentences)
    assert "92.70" not in page_of(tmp_path)


def test_figures_that_were_changed_after_they_were_written_are_not_shown(tmp_path: Path):
    text = put(tmp_path, whole()).joinpath("report.json").read_text()
    (tmp_path / "report.json").write_text(text.replace("0.927", "0.997"))
    assert "changed after it was written" in " ".join(view(tmp_path).verdict.sentences) and "99.70" not in page_of(tmp_path)


def test_a_report_of_the_first_schema_is_drawn(tmp_path: Path):
    values = json.loads(edited(put(tmp_path, report()).joinpath("report.json").read_text()))
    for later in ("outcome", "broken", "layers", "stays", "activations", "trainings", "chance", "warnings", "curves", "pictures"):
        values.pop(later, None)
    for one in values["stages"]:
        for later in ("rounds_ms", "dense_rounds_ms", "noisy"):
            one["latency"].pop(later)
    (tmp_path / "report.json").write_text(json.dumps(values | {"schema": 1}))
    seen = view(tmp_path)
    assert seen.verdict.figures[0].value == "92.70 % top1" and "does not hold its single rounds" in seen.latency_note


@pytest.mark.parametrize("name", ["plan.json", "recipe.toml", "analysis.json", "stages/00-dense/stage.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null", b"[" * 5000, b'{"schema": 1, "edits": 3}'])
def test_a_broken_file_hides_no_other(tmp_path: Path, name: str, content: bytes):
    put(tmp_path, whole())
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    assert view(tmp_path).verdict.tone in ("good", "unsure")
    (tmp_path / "report.json").unlink()
    assert view(tmp_path).verdict.tone == "bad"


def test_several_runs_stand_beside_each_other(tmp_path: Path):
    places = [put(tmp_path / "a", whole()), put(tmp_path / "b", report(changed(RESULT, quality=quality(0.105)), chance=0.1))]
    places.append(tmp_path / "c")
    (tmp_path / "c/stages").mkdir(parents=True)
    page = viewed([opened(place, place.name) for place in places])
    assert page.beside and [row[0] for row in page.beside.table.rows] == ["a", "b", "c"]
    assert page.beside.table.rows[0][3:5] == ("92.70 %", "-0.30") and "guessing" in page.beside.table.rows[1][1]
    assert page.beside.graph and len(page.beside.graph.plot.marks) == 2 and "Without a result: c." in page.beside.warnings
    found = _Page(page_of(*places, names=("a", "b", "c")))
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and sum(tag == "details" for tag, _ in found.tags) == 3


def test_runs_of_other_metrics_have_a_table_and_no_picture(tmp_path: Path):
    other = changed(RESULT, quality=quality(0.9).model_copy(update={"metric": "miou"}))
    runs = [opened(put(tmp_path / name, made), name) for name, made in (("a", whole()), ("b", report(other)))]
    found = viewed(runs).beside
    assert found and found.graph is None and "needed is one metric" in found.warnings[0]


# The command


def test_the_command_writes_the_page_into_the_folder_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path / "out", whole())
    result = invoke("report", tmp_path / "out")
    assert result.exit_code == 0 and "report.html is written" in result.stdout, result.output
    page = (tmp_path / "out/report.html").read_text()
    assert page == page_of(tmp_path / "out") and not list((tmp_path / "out").glob(".*"))
    assert invoke("report", tmp_path / "out/report.json").exit_code == 0
    put(tmp_path / "other", whole())
    monkeypatch.chdir(tmp_path)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "report.json").write_text("{")
    result = invoke("report", damaged)
    assert result.exit_code == 2 and "report.html is written, without what cannot be read. damaged: The report" in result.stderr
    assert (damaged / "report.html").exists()
    assert invoke("report", "out", "other").exit_code == 0 and "2 runs beside" in Path("report.html").read_text()
    refused = invoke("report", "out", "other")
    assert refused.exit_code == 2 and "--force" in refused.stderr
    assert compress.report_page("out", "other", force=True) == Path("report.html")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "holds no run"),
        (("empty",), "holds no run"),
        (("out", "--out", "missing/page.html"), "does not exist"),
        (("out", "--out", "empty", "--force"), "is a folder"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
):
    put(tmp_path / "out", whole())
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    result = invoke("report", *arguments)
    assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.html"))


def test_a_page_is_made_without_torch(tmp_path: Path):
    put(tmp_path, whole())
    code = (
        "import sys; from compress.commands.report_page import report_page; report_page(sys.argv[1])\n"
        "assert not {'torch', 'onnx', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert (tmp_path / "report.html").exists()


def test_a_run_as_it_was_before_there_was_a_page(tmp_path: Path):
    text = page_of(made_run(tmp_path))
    assert "holds nothing of its layers" in text


def test_a_place_that_is_no_run_is_refused():
    with pytest.raises(BadInput, match="No run was given"):
        compress.report_page()
    with pytest.raises(BadInput, match="Give the folder of a run"):
        opened(Path("nowhere"))


# Places


@pytest.mark.parametrize("values", [[1.0], [0.0], [1e-12, 2e-12], [1e300, -1e300], [1.7e308], [3.0, 3.0 + 1e-15], [-5.0, 5.0]])
def test_an_axis_has_room_for_any_figures(values: list[float]):
    for axis in (x_axis(values), y_axis(values), x_axis([abs(v) + 1e-9 for v in values], log=True)):
        assert 0 < len(axis.ticks()) < 20 or axis.log
    assert all(70 <= x_axis(values)(v) <= WIDTH for v in values)
    assert x_axis([2.0, 4.0], from_zero=True)(0.0) == LEFT
    assert all(a < b for a, b in zip(steps(0, 7.3), steps(0, 7.3)[1:], strict=False))


def test_labels_of_marks_keep_out_of_each_others_way(tmp_path: Path):
    marks = view(put(tmp_path, report(changed(RESULT, macs=DENSE.macs, quality=DENSE.quality)))).stages
    assert marks
    close = [marks.choices[0].plot.marks[0].__class__(300 + i, 150, str(i), "") for i in range(6)]
    placed = labelled(close)
    spots = [(mark.label_x, mark.label_y) for mark in placed]
    assert all(abs(a[0] - b[0]) > 8 or abs(a[1] - b[1]) > 10 for a in spots for b in spots if a is not b)
