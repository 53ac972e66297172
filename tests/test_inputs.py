"""What a model takes besides pictures: tokens, one number per sample; and where its architecture may come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from compress.checkpoint.load import load, open_artifact
from compress.cli.main import cli
from compress.errors import BadInput

QUICK = ("--target", "macs=0.6", "--align", "1", "--epochs", "0", "--rounds", "5", "--calibration", "40", "--depth", "0")


class Words(nn.Module):
    """A text classifier: integers in, a table of its own and one of places."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(30, 8), nn.Embedding(12, 8)
        self.hidden, self.out = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, tokens):
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        return self.out(torch.relu(self.hidden(x)).mean(1))


class Timed(nn.Module):
    """As in a diffusion model: a picture, and one number per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.first, self.last = nn.Linear(8, 16), nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 3, 3, 1, 1)

    def forward(self, x, t):
        steps = torch.exp(-0.5 * torch.arange(4, device=t.device))
        angles = t[:, None] * steps[None]
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        return self.last(torch.relu(self.first(x) + time[:, :, None, None]))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with text, and its classifier."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(Words().state_dict(), "words.pt")
    random = np.random.default_rng(0)
    parts = {"train": 60, "test": 40}
    arrays = {f"x_{name}": random.integers(0, 30, (n, 12)) for name, n in parts.items()}
    np.savez("text.npz", **arrays, **{f"y_{name}": np.arange(n) % 3 for name, n in parts.items()})
    return tmp_path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_a_model_of_tokens_goes_from_whole_numbers_to_a_smaller_model():
    arch = f"{__file__}:Words"
    result = invoke("run", "words.pt", "--arch", arch, "--data", "text.npz", *QUICK, "--export", "onnx", "--out", "out", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(Path("out/report.json").read_text())
    assert any("the inputs are whole numbers" in note for note in report["notes"])
    assert report["stages"][-1]["macs"] < report["stages"][0]["macs"]
    small = load(Path("out/model.compressed"))
    tokens = torch.randint(0, 30, (2, 12))
    assert torch.equal(small(tokens), small(tokens.float()))
    assert small.get_submodule("words").embedding_dim == small.state_dict()["words.weight"].shape[1]


def test_examples_for_a_model_of_tokens_are_whole_numbers_that_its_table_has():
    artifact = open_artifact("words.pt", arch=f"{__file__}:Words", input_shapes=((12,),))
    (tokens,) = artifact.inputs
    assert tokens.dtype is torch.float32 and torch.equal(tokens, tokens.round()) and tokens.min() >= 0 and tokens.max() < 30


def test_one_number_per_sample_is_a_shape():
    torch.save(Timed().state_dict(), "timed.pt")
    shapes = ("--input-shape", "3x8x8", "--input-shape", "scalar")
    result = invoke("explain", "timed.pt", "--arch", f"{__file__}:Timed", *shapes)
    assert result.exit_code == 0, result.stderr
    assert "first" in result.stdout and "Within reach: " in result.stdout


def test_what_is_within_reach_comes_first_and_then_what_stays_the_dearest_first():
    result = invoke("explain", "words.pt", "--arch", f"{__file__}:Words", "--input-shape", "12", "--reach", "--json")
    first, *rest = json.loads(result.stdout)
    assert first["group"] == "within reach" and first["channels"] == 2 and 0.5 < first["macs"] < 1
    assert [row["macs"] for row in rest] == sorted((row["macs"] for row in rest), reverse=True)
    assert all(row["stays"] for row in rest)
    clash = invoke("explain", "words.pt", "hidden", "--arch", f"{__file__}:Words", "--input-shape", "12", "--reach")
    assert clash.exit_code == 2 and "--reach speaks of the whole model" in clash.stderr


class Steps(nn.Module):
    """A classifier of sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.r, self.o = nn.Linear(6, 12), nn.LSTM(12, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.o(self.r(torch.relu(self.a(x)))[0][:, -1])


def test_sequences_are_arrays_of_the_shape_that_is_given():
    torch.save(Steps().state_dict(), "steps.pt")
    random = np.random.default_rng(0)
    parts = {"train": 60, "test": 40}
    arrays = {f"x_{name}": random.standard_normal((n, 9, 6)).astype(np.float32) for name, n in parts.items()}
    np.savez("steps.npz", **arrays, **{f"y_{name}": np.arange(n) % 3 for name, n in parts.items()})
    arch = f"{__file__}:Steps"
    settings = ("--data", "steps.npz", "--input-shape", "9x6", "--method", "magnitude", *QUICK)
    result = invoke("run", "steps.pt", "--arch", arch, *settings, "--out", "steps", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(Path("steps/report.json").read_text())
    assert any("used as they are, samples of 9x6" in note for note in report["notes"])
    assert not any("Normalization" in note and "none" not in note for note in report["notes"])


# ---- several outputs -------------------------------------------------------------------------------------------------------


class Detects(nn.Module):
    """Boxes, chances, and the map that they are made of, as detectors give them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.boxes, self.chances = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1), nn.Conv2d(16, 5, 1)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        features = torch.relu(self.body(x))
        boxes = self.boxes(features)
        return boxes, {"chances": self.chances(features) * self.scale, "maps": [features]}


def detecting(**settings: Any) -> Any:
    torch.manual_seed(0)
    torch.save(Detects().state_dict(), "detects.pt")
    return open_artifact("detects.pt", arch=f"{__file__}:Detects", input_shapes=((3, 8, 8),), **settings)


def test_one_output_of_several_is_kept_and_what_only_others_need_goes():
    whole = detecting()
    assert whole.channels.group("body").frozen
    kept = detecting(output="1.chances")
    assert kept.channels.group("body").frozen is None
    assert {name.partition(".")[0] for name in kept.module.state_dict()} == {"body", "chances", "scale"}
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(kept.module(x), whole.module(x)[1]["chances"])
    assert {name.partition(".")[0] for name in detecting(output="0").module.state_dict()} == {"body", "boxes"}


def test_an_output_that_is_not_there_is_told_which_there_are():
    with pytest.raises(BadInput, match=r"the model gives 0, 1\.chances, 1\.maps\.0\. Give one of them"):
        detecting(output="chances")
    result = invoke("explain", "words.pt", "--arch", f"{__file__}:Words", "--input-shape", "12", "--output", "logits")
    assert result.exit_code == 2 and "the model gives one tensor" in result.stderr


# ---- architectures of transformers -----------------------------------------------------------------------------------------


def config(**entries: Any) -> Path:
    folder = Path("pretrained")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(entries))
    return folder


def refused(where: object) -> str:
    with pytest.raises(BadInput) as caught:
        open_artifact("words.pt", arch=f"hf:{where}", input_shapes=((12,),))
    return str(caught.value)


def test_transformers_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("compress.checkpoint.load.hugging_face.find_spec", lambda name: None)
    assert "needs transformers, which is not installed" in refused(config(model_type="bert"))


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"model_type": "bert", "auto_map": {"AutoModel": "code.Model"}}, "needs code of its own"),
        ({"model_type": "nothing_known"}, "has no model type 'nothing_known'"),
        ({"model_type": ["bert"]}, "has no model type ['bert']"),
        ({"model_type": "bert", "depths": [{"num_classes": 10**9}]}, "gives a num_classes that no network has. Correct"),
        ({"model_type": "bert"}, "names no class of transformers"),
        ({"model_type": "bert", "architectures": ["AutoModel"]}, "names no class of transformers"),
        ({"model_type": "bert", "architectures": ["pipeline"]}, "names no class of transformers"),
    ],
)
def test_configs_that_need_code_or_name_no_model_are_refused(entries: dict[str, Any], why: str):
    pytest.importorskip("transformers")
    assert why in refused(config(**entries))


def test_a_folder_without_a_config_is_refused():
    pytest.importorskip("transformers")
    assert "There is no" in refused("elsewhere")
    config()
    Path("pretrained/config.json").write_text("[]")
    assert "is no config of transformers" in refused("pretrained")


def test_a_model_of_transformers_is_opened_and_its_heads_can_go():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, "num_labels": 3}
    made = transformers.AutoConfig.for_model("bert", vocab_size=30, max_position_embeddings=16, **sizes)
    transformers.BertForSequenceClassification(made).save_pretrained("pretrained")
    artifact = open_artifact("pretrained/model.safetensors", arch="hf:pretrained", input_shapes=((12,),))
    widths = {g.name: g.channels for g in artifact.channels.removable}
    assert widths["bert.encoder.layer.0.attention.self.query"] == 4
    assert widths["bert.encoder.layer.0.intermediate.dense"] == 48


@pytest.mark.parametrize("kind", ["ViT", "GPT2"])
def test_files_of_transformers_with_older_names_and_tied_weights_are_opened(kind: str):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "ViT": {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16},
        "GPT2": {
            "n_embd": 24,
            "n_layer": 1,
            "n_head": 4,
            "vocab_size": 30,
            "n_positions": 16,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    }[kind]
    made = getattr(transformers, f"{kind}Config")(**sizes)
    name = {"ViT": "ViTForImageClassification", "GPT2": "GPT2LMHeadModel"}[kind]
    saved = getattr(transformers, name)(made).eval()
    saved.save_pretrained("pretrained")
    shape, example = ((3, 16, 16), torch.randn(2, 3, 16, 16)) if kind == "ViT" else ((12,), torch.randint(0, 30, (2, 12)))
    opened = open_artifact("pretrained/model.safetensors", arch="hf:pretrained", input_shapes=(shape,))
    torch.testing.assert_close(opened.module(example)["logits"], saved(example).logits, rtol=1e-4, atol=1e-5)
    for key, value in {"transformers_weights": 5, "fusion_config": {"x": 1}, "quantization_config": {"x": 1}}.items():
        entries = json.loads(Path("pretrained/config.json").read_text())
        Path("pretrained/config.json").write_text(json.dumps(entries | {key: value}))
        open_artifact("pretrained/model.safetensors", arch="hf:pretrained", input_shapes=(shape,))
    for key, value in {
        "attn_implementation": "a/b",
        "_attn_implementation": "x",
        "transformers_weights": "x.safetensors",
    }.items():
        with pytest.raises(BadInput, match=f"--arch-kwargs gives {key}"):
            open_artifact("pretrained/model.safetensors", arch="hf:pretrained", arch_kwargs={key: value}, input_shapes=(shape,))
    made.update({"hidden_size": 32} if kind == "ViT" else {"n_embd": 32})
    made.save_pretrained("pretrained")
    with pytest.raises(BadInput, match="does not fit --arch hf:pretrained"):
        open_artifact("pretrained/model.safetensors", arch="hf:pretrained", input_shapes=(shape,))
