"""A checkpoint is whole or not there, and opens without the class that it came from."""

import json
import resource
import signal
import subprocess
import sys
from hashlib import sha256

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.artifact import Artifact
from compress.checkpoint.load import load, load_model, open_artifact
from compress.checkpoint.save import save
from compress.checkpoint.sums import FILES, SUMS
from compress.errors import BadInput, UnsupportedModel
from compress.graph.trace.trace import trace

X = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))


class Opaque(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.fixture
def module():
    return trace(Net(), (X,))


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_saved_model_comes_back_bit_equal(tmp_path, module):
    assert save(module, tmp_path / "out" / "model.compressed") == tmp_path / "out" / "model.compressed"
    again = load(tmp_path / "out" / "model.compressed")
    assert torch.equal(again(X), module(X)) and not again.training
    assert list(again.state_dict()) == list(module.state_dict())
    assert sorted(p.name for p in (tmp_path / "out" / "model.compressed").iterdir()) == sorted(FILES)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model.compressed"]


def test_loaded_weights_lie_where_torch_would_put_them(tmp_path):
    # Libraries of linear algebra add in another order where memory begins at an odd place, so that outputs differ in a bit.
    odd = trace(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7), nn.Linear(7, 3)), (torch.zeros(1, 3),))
    save(Artifact(odd, (torch.zeros(1, 3),)), tmp_path / "odd.compressed")
    loaded = load(tmp_path / "odd.compressed")
    assert {p.data_ptr() % 64 for p in loaded.parameters()} == {torch.zeros(5).data_ptr() % 64} == {0}


def test_saved_model_opens_where_its_class_is_unknown(tmp_path, module):
    save(module, tmp_path / "m")
    code = (
        "import sys, torch; import compress; m = compress.load(sys.argv[1]).train(); "
        "m(torch.ones(2, 3, 8, 8)).sum().backward(); "
        "assert 'test_save' not in sys.modules; print(sum(p.grad is not None for p in m.parameters()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(list(module.parameters()))


def test_artifact_remembers_its_input_size_where_the_graph_does_not(tmp_path, module):
    for node in module.graph.nodes:
        node.meta.pop("shape", None)
    save(Artifact(module, (X,)), tmp_path / "m")
    assert [t.shape for t in open_artifact(tmp_path / "m").inputs] == [X.shape]


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    save(trace(model, (torch.ones(1, 4),)), tmp_path / "m")
    again = load(tmp_path / "m")
    assert again.get_submodule("0").weight is again.get_submodule("2").weight
    assert (tmp_path / "m" / "weights.safetensors").stat().st_size < 4 * (16 + 4) + 400


def test_tensors_that_share_memory_or_are_not_contiguous_are_stored(tmp_path):
    model = Net().to(memory_format=torch.channels_last)
    model.register_buffer("part", model.head.bias.detach()[:1])
    module = torch.fx.symbolic_trace(model).eval()
    module.register_buffer("part", model.part)
    save(module, tmp_path / "m")
    assert torch.equal(load(tmp_path / "m").part, model.head.bias[:1])


def test_changes_after_saving_do_not_reach_the_file(tmp_path, module):
    before = module(X)
    save(module, tmp_path / "m")
    with torch.no_grad():
        module.head.weight.zero_()
    assert torch.equal(load(tmp_path / "m")(X), before)


def test_older_checkpoint_is_replaced_whole(tmp_path, module):
    save(trace(Net(8), (X,)), tmp_path / "m")
    save(module, tmp_path / "m")
    assert torch.equal(load(tmp_path / "m")(X), module(X))
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_same_model_gives_the_same_bytes(tmp_path, module):
    save(module, tmp_path / "a")
    save(load(tmp_path / "a"), tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.parametrize("foreign", ["file", "folder"])
def test_something_else_in_the_place_is_not_touched(tmp_path, module, foreign):
    place = tmp_path / "m"
    inner = place if foreign == "file" else place / "notes.txt"
    inner.parent.mkdir(exist_ok=True)
    inner.write_text("mine")
    with pytest.raises(BadInput, match=f"is a {foreign}"):
        save(module, place)
    assert inner.read_text() == "mine"


def test_place_that_cannot_be_written_is_refused(tmp_path, module):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot be written to .*writable"):
        save(module, tmp_path / "file" / "m")


def test_full_disk_leaves_the_old_checkpoint_and_nothing_else(tmp_path, module):
    save(module, tmp_path / "m")
    old, wide = content(tmp_path / "m"), trace(Net(512), (X,))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # as a disk with that much room
    try:
        with pytest.raises(BadInput, match=r"cannot be written to .*has room"):
            save(wide, tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert content(tmp_path / "m") == old and [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("moment", ["flush", "rename"])
def test_failure_at_any_moment_leaves_the_old_checkpoint(tmp_path, module, monkeypatch, moment):
    save(module, tmp_path / "m")
    old = content(tmp_path / "m")

    def fail(*_):
        raise OSError(5, "Input/output error")

    if moment == "flush":
        monkeypatch.setattr("os.fsync", fail)
    else:
        rename = type(tmp_path).rename
        monkeypatch.setattr(
            type(tmp_path), "rename", lambda a, b: fail() if b.name == "m" and ".old." not in str(a) + str(b) else rename(a, b)
        )
    with pytest.raises(BadInput, match="Input/output error"):
        save(trace(Net(8), (X,)), tmp_path / "m")
    assert content(tmp_path / "m") == old and [p.name for p in tmp_path.iterdir()] == ["m"]


def test_model_that_cannot_be_stored_writes_nothing(tmp_path):
    module = trace(nn.Sequential(nn.Conv2d(3, 3, 1), Opaque()), (X,))
    with pytest.raises(UnsupportedModel, match=r"submodule '1'.*Opaque"):
        save(module, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ damaged checkpoints


@pytest.mark.parametrize("name", ["graph.json", "weights.safetensors"])
def test_checkpoint_without_one_of_its_files_is_refused(tmp_path, module, name):
    save(module, tmp_path / "m")
    (tmp_path / "m" / name).unlink()
    with pytest.raises(BadInput, match=f"without {name}"):
        load(tmp_path / "m")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.3, 0.99])
def test_a_flipped_bit_anywhere_in_a_checkpoint_is_refused(tmp_path, module, name, place):
    save(module, tmp_path / "m")
    file = tmp_path / "m" / name
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 1
    file.write_bytes(data)
    with pytest.raises(BadInput, match=r"does not match its checksum in SHA256SUMS\. Copy it again, or save the model again"):
        load(tmp_path / "m")


def test_checksums_are_those_that_sha256sum_reads(tmp_path, module):
    save(module, tmp_path / "m")
    lines = [line.split("  ") for line in (tmp_path / "m" / SUMS).read_text().splitlines()]
    expected = [[sha256((tmp_path / "m" / name).read_bytes()).hexdigest(), name] for name in FILES[:2]]
    assert lines == expected and load_model(tmp_path / "m").notes == ()


@pytest.mark.parametrize("target", ["nowhere", "/dev/zero", "."])
def test_checksums_that_are_no_file_are_refused(tmp_path, module, target):
    save(module, tmp_path / "m")
    (tmp_path / "m" / SUMS).unlink()
    (tmp_path / "m" / SUMS).symlink_to(target)
    with pytest.raises(BadInput, match="SHA256SUMS is no plain file"):
        load(tmp_path / "m")


def test_a_checkpoint_of_an_older_version_opens_with_a_note(tmp_path, module):
    old_version(module, tmp_path / "m")
    found = load_model(tmp_path / "m")
    assert torch.equal(found.module(X), module(X))
    assert len(found.notes) == 1 and "has no SHA256SUMS" in found.notes[0]
    save(module, tmp_path / "m")
    assert load_model(tmp_path / "m").notes == ()


def old_version(module, path):
    """A folder as it was written before there were checksums: what is in it is believed as far as it can be."""
    save(module, path)
    (path / SUMS).unlink()


@pytest.mark.parametrize("name", ["graph.json", "weights.safetensors"])
def test_truncated_checkpoint_is_refused(tmp_path, module, name):
    old_version(module, tmp_path / "m")
    file = tmp_path / "m" / name
    whole = file.read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 3):
        file.write_bytes(whole[:size])
        with pytest.raises(BadInput):
            load(tmp_path / "m")


def test_weights_of_another_model_are_refused(tmp_path, module):
    save(module, tmp_path / "m")
    save(trace(Net(8), (X,)), tmp_path / "other")
    (tmp_path / "other" / "weights.safetensors").rename(tmp_path / "m" / "weights.safetensors")
    with pytest.raises(BadInput, match=r"weights\.safetensors does not match its checksum"):
        load(tmp_path / "m")
    (tmp_path / "m" / SUMS).unlink()
    with pytest.raises(BadInput, match=r"does not belong to the graph.json .*: conv.bias is \(8,\), the graph needs \(4,\)"):
        load(tmp_path / "m")


def test_graph_that_asks_for_huge_layers_is_refused_before_they_are_made(tmp_path, module):
    old_version(module, tmp_path / "m")
    file = tmp_path / "m" / "graph.json"
    data = json.loads(file.read_text())
    data["layers"]["head"]["args"] = {"in_features": 2**20, "out_features": 2**20}
    data["tensors"]["head.weight"]["shape"] = [2**20, 2**20]
    data["tensors"]["head.bias"]["shape"] = [2**20]
    file.write_text(json.dumps(data))
    with pytest.raises(BadInput, match="does not belong"):
        load(tmp_path / "m")


def test_no_numbers_in_a_checkpoint_are_named(tmp_path, module):
    with torch.no_grad():
        module.head.weight[0, 0] = float("nan")
    save(module, tmp_path / "m")
    with pytest.raises(BadInput, match=r"head.weight"):
        load_model(tmp_path / "m")
