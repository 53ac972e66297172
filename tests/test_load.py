"""Model files of every kind that people have, and a clear sentence for each that cannot be used."""

import io
import os
import pickle
import struct
import sys
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compress.checkpoint.load import load, load_model, open_artifact, parse_shape
from compress.checkpoint.load.pickled_layers import KINDS
from compress.checkpoint.load.sniff import Kind, identify
from compress.checkpoint.save import save
from compress.errors import BadInput, UnsupportedModel

SMALL_NET = """
from torch import nn

def net(num_classes=10, width=4, fail=False):
    if fail:
        raise RuntimeError("out of luck")
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, num_classes))

def number():
    return 3
"""


def net(classes=10, width=4):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
    )


class Foreign(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder of the test, with small_net.py in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small_net.py").write_text(SMALL_NET)
    yield tmp_path
    for name in ("small_net", "_compress_user_small_net"):
        sys.modules.pop(name, None)


def stored(saved, path="model.pt", **options):
    torch.save(saved, path, **options)
    return path


def rewritten(path, change):
    """The archive with its parts changed, and the right checksums."""
    with zipfile.ZipFile(path) as old:
        parts = {name: change(name, old.read(name)) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in parts.items():
            new.writestr(name, data)


def same_weights(module, other):
    pairs = zip(module.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


# ---------------------------------------------------------------------------------------------------------- what is opened


def test_pickled_module_of_torch_layers_opens_without_trust(here):
    loaded = load_model(stored(net().eval()))
    assert same_weights(loaded.module, net()) and loaded.notes == ()


def test_pickled_transformer_and_attention_layers_open(here):
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True).eval()
    loaded = load_model(stored(nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))))
    x = torch.linspace(-1, 1, 24).reshape(1, 3, 8)
    assert loaded.module(x).shape == x.shape


def test_every_listed_class_is_a_layer_of_torch_itself():
    assert all(found.__module__.startswith("torch.nn.") for found in KINDS)
    assert Foreign not in KINDS and nn.Module not in KINDS


def test_training_mode_is_left_and_said(here):
    loaded = load_model(stored(net().train()))
    assert not loaded.module.training
    assert loaded.notes == ("The module was saved in training mode; it is used in eval mode.",)


def test_data_parallel_wrapper_is_taken_off(here):
    loaded = load_model(stored(nn.DataParallel(net()).eval()))
    assert type(loaded.module) is nn.Sequential and "DataParallel" in loaded.notes[0]


@pytest.mark.parametrize("nest", ["", "state_dict", "model", "module", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "encoder."])
def test_state_dicts_nested_and_prefixed_find_their_architecture(here, nest, prefix):
    weights = OrderedDict((prefix + name, tensor) for name, tensor in net().state_dict().items())
    loaded = load_model(stored({nest: weights, "epoch": 3} if nest else weights), arch="small_net.py:net")
    assert same_weights(loaded.module, net()) and not loaded.module.training
    assert len(loaded.notes) == bool(nest) + (2 if prefix.count(".") == 2 else bool(prefix))


def test_module_nested_in_a_checkpoint_opens(here):
    loaded = load_model(stored({"model": net().eval(), "epoch": 3}))
    assert same_weights(loaded.module, net()) and "'model'" in loaded.notes[0]


def test_legacy_state_dict_opens(here):
    path = stored(net().state_dict(), _use_new_zipfile_serialization=False)
    assert identify(here / path) is Kind.LEGACY
    assert same_weights(load_model(path, arch="small_net.py:net").module, net())


def test_state_dict_in_the_tar_format_opens(here):
    write_legacy_tar("model.pth.tar", net().state_dict())
    assert identify(here / "model.pth.tar") is Kind.TAR
    assert same_weights(load_model("model.pth.tar", arch="small_net.py:net").module, net())


def test_tensors_that_lived_on_a_gpu_open_on_the_cpu(here):
    path = stored(net().state_dict())
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in parts if name.endswith("data.pkl"))
    assert parts[pickled].count(b"X\x03\x00\x00\x00cpu") == 1  # later mentions refer to the first
    parts[pickled] = parts[pickled].replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    with zipfile.ZipFile("cuda.pt", "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    assert same_weights(load_model("cuda.pt", arch="small_net.py:net").module, net())


def test_safetensors_open_with_an_architecture(here):
    save_file(net().state_dict(), "model.safetensors")
    assert same_weights(load_model("model.safetensors", arch="small_net.py:net").module, net())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_used_as_float32_and_said(here, dtype):
    weights = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in net().state_dict().items()}
    kind = str(dtype).removeprefix("torch.")
    for loaded in (load_model(stored(weights), arch="small_net.py:net"), load_model(stored(net().to(dtype).eval()))):
        assert loaded.notes == (f"The weights are {kind}; they are used as float32.",)
        assert all(t.dtype == torch.float32 for t in loaded.module.parameters())


def test_own_checkpoint_opens_as_a_model_and_as_an_artifact(here):
    artifact = open_artifact(stored(net().eval()), input_shapes=((3, 8, 8),))
    save(artifact, "model.compressed")
    again = open_artifact("model.compressed")
    assert [tuple(t.shape) for t in again.inputs] == [(1, 3, 8, 8)]
    assert torch.equal(again.module(*again.inputs), artifact.module(*artifact.inputs))
    assert same_weights(load("model.compressed"), artifact.module)


# ----------------------------------------------------------------------------------------------------------- architectures


def test_torchvision_architecture_and_number_of_classes_come_from_the_weights(here):
    import torchvision

    weights = torchvision.models.shufflenet_v2_x0_5(num_classes=7).state_dict()
    loaded = load_model(stored(weights), arch="torchvision:shufflenet_v2_x0_5")
    assert loaded.notes == ("num_classes=7 was read from the shape of fc.weight.",)
    assert loaded.module.fc.out_features == 7
    given = load_model("model.pt", arch="torchvision:shufflenet_v2_x0_5", arch_kwargs={"num_classes": 7})
    assert given.notes == () and same_weights(given.module, loaded.module)


def test_number_of_classes_is_not_guessed_where_something_else_differs(here):
    with pytest.raises(BadInput, match=r"0.weight is \[8, 3, 3, 3\], the architecture has \[4, 3, 3, 3\]"):
        load_model(stored(net(classes=7, width=8).state_dict()), arch="small_net.py:net")
    loaded = load_model("model.pt", arch="small_net.py:net", arch_kwargs={"width": 8})
    assert loaded.notes == ("num_classes=7 was read from the shape of 5.weight.",)


def test_number_of_classes_that_was_given_is_not_overruled(here):
    with pytest.raises(BadInput, match=r"5.weight is \[7, 4\], the architecture has \[9, 4\]"):
        load_model(stored(net(classes=7).state_dict()), arch="small_net.py:net", arch_kwargs={"num_classes": 9})


def test_timm_architecture(here):
    timm = pytest.importorskip("timm")
    weights = timm.create_model("resnet10t", pretrained=False, num_classes=3).state_dict()
    loaded = load_model(stored(weights), arch="timm:resnet10t")
    assert "num_classes=3" in loaded.notes[0]


def test_missing_timm_is_named_with_its_remedy(here, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"needs timm.*pip install 'entropress\[timm\]'"):
        load_model(stored(net().state_dict()), arch="timm:resnet18")


@pytest.mark.parametrize("arch", ["small_net:net", "small_net.py:net", "./small_net.py:net"])
def test_factories_of_the_current_folder_are_found(here, arch):
    assert same_weights(load_model(stored(net().state_dict()), arch=arch).module, net())
    assert str(here) not in sys.path


def test_building_an_architecture_leaves_the_random_state_alone(here):
    path = stored(net().state_dict())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model(path, arch="small_net.py:net")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("arch", "arguments", "needle"),
    [
        ("torchvision:resnet19", {}, "no model 'resnet19'. Did you mean resnet18"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "weights come from the model file"),
        ("small_net.py:missing", {}, "no function missing; it has: .*net"),
        ("small_net.py", {}, "needed is package.module:function"),
        ("nowhere.py:net", {}, "no file nowhere.py"),
        ("nowhere_at_all:net", {}, "importing nowhere_at_all fails"),
        ("small_net.py:net", {"fail": True}, "fail=True.*RuntimeError: out of luck"),
        ("small_net.py:net", {"depth": 3}, "depth=3.*TypeError"),
        ("small_net.py:number", {}, "gives a .*int"),
    ],
)
def test_architectures_that_cannot_be_built_are_refused(here, arch, arguments, needle):
    with pytest.raises(BadInput, match=needle):
        load_model(stored(net().state_dict()), arch=arch, arch_kwargs=arguments)


def test_weights_without_architecture_are_refused_with_how(here):
    with pytest.raises(BadInput, match=r"weights only \(9 tensors, the first is 0.weight\).*--arch torchvision:NAME") as refusal:
        load_model(stored(net().state_dict()))
    assert refusal.value.exit_code == 2


def test_wrong_architecture_names_at_most_five_differences(here):
    with pytest.raises(BadInput) as refusal:
        load_model(stored(net().state_dict()), arch="torchvision:resnet18")
    message = str(refusal.value)
    assert message.count(" is missing") + message.count(" is unexpected") + message.count("the architecture has") == 5
    assert "is missing" in message and "is unexpected" in message and "more." in message


# ----------------------------------------------------------------------------------------------------- code in the pickle


class Canary:
    """Unpickling this creates a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("form", ["new", "legacy", "protocol 4", "tar", "inside a module", "pickle"])
def test_code_in_a_model_file_does_not_run(here, form):
    canary = Canary(here / "it ran")
    if form == "tar":
        write_legacy_tar("model.pt", canary)
    elif form == "pickle":
        (here / "model.pt").write_bytes(pickle.dumps(canary))
    elif form == "inside a module":
        module = net()
        module.extra = canary
        stored(module)
    else:
        options = {"legacy": {"_use_new_zipfile_serialization": False}, "protocol 4": {"pickle_protocol": 4}}
        stored({"state_dict": net().state_dict(), "other": canary}, **options.get(form, {}))
    with pytest.raises(
        BadInput, match="plain Python pickle" if form == "pickle" else r"(posix|nt)\.mkdir.*--arch.*--trust-pickle"
    ):
        load_model("model.pt", arch="small_net.py:net")
    assert not (here / "it ran").exists()


def test_the_canary_sings_when_the_file_is_trusted(here):
    stored({"state_dict": net().state_dict(), "other": Canary(here / "it ran")})
    load_model("model.pt", arch="small_net.py:net", trust_pickle=True)
    assert (here / "it ran").exists()


def test_user_class_is_refused_by_name_and_opens_with_trust(here):
    path = stored(Foreign().eval())
    with pytest.raises(BadInput, match=r"needs the code of .*test_load\.Foreign.*--arch.*--trust-pickle"):
        load_model(path)
    assert isinstance(load_model(path, trust_pickle=True).module, Foreign)


def test_trusted_class_that_cannot_be_imported_is_named(here):
    path = stored(Foreign())
    rewritten(here / path, lambda name, data: data.replace(b"Foreign", b"Missing"))
    with pytest.raises(BadInput, match=r"cannot be imported .*Missing"):
        load_model(path, trust_pickle=True)


def test_module_with_a_replaced_method_or_a_hook_is_refused(here):
    module = net()
    module[2].forward = nn.ReLU
    with pytest.raises(BadInput, match="replaces the method forward of the layer '2'"):
        load_model(stored(module))
    module = net()
    module[2]._forward_hooks[0] = nn.ReLU
    with pytest.raises(BadInput, match="sets forward_hooks of the layer '2'"):
        load_model(stored(module))


def test_module_with_something_else_than_a_layer_inside_is_refused(here):
    module = net()
    module._modules["2"] = torch.zeros(3)
    with pytest.raises(BadInput, match=r"holds a .*Tensor at '2'"):
        load_model(stored(module))


# -------------------------------------------------------------------------------------------------------- unusable files


def script():
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, the files are still there
        torch.jit.save(torch.jit.trace(net().eval(), torch.zeros(1, 3, 8, 8)), buffer)
    return buffer.getvalue()


def archive(**parts):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in parts.items():
            file.writestr(name.replace("__", "/"), data)
    return buffer.getvalue()


def saved_bytes(saved):
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    return buffer.getvalue()


def of_version(archive: bytes, needed: int) -> bytes:
    """An archive that asks for a later version of the format to be read."""
    at = archive.index(b"PK\x01\x02") + 6
    return archive[:at] + bytes([needed]) + archive[at + 1 :]


UNUSABLE = {
    "empty": (lambda: b"", "is empty"),
    "truncated": (lambda: saved_bytes(net().state_dict())[:-700], "truncated or damaged"),
    "longer than memory": (lambda: b"\x80\x80\x8d" + b"\xff" * 7 + b"\x2f", "truncated or damaged"),
    "one byte": (lambda: b"\x08", "of no known format"),
    "zip of a later kind": (lambda: of_version(saved_bytes(net()), 127), "truncated or damaged"),
    "truncated legacy": (lambda: b"\x80\x02\x8a\nl\xfc\x9cF", "truncated or damaged"),
    "web page": (lambda: b"\n<!DOCTYPE html><html><body>404</body></html>", "web page .HTML."),
    "git-lfs pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "text": (lambda: b"hello, here are the weights: 1 2 3", "is a text file"),
    "noise": (lambda: bytes(range(200, 256)) * 9, "of no known format"),
    "ONNX": (lambda: b"\x08\x0a\x12\x07pytorch\x1a\x052.0.0" + bytes(600), "ONNX file; needed is the torch model"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(600), "HDF5"),
    "TFLite": (lambda: b"\x1c\0\0\0TFL3" + bytes(600), "TensorFlow Lite"),
    "Keras": (lambda: archive(**{"config.json": "{}", "model.weights.h5": ""}), "Keras model"),
    "pt2": (lambda: archive(a__archive_format="pt2", a__models__model_json=""), r"torch.export \(.pt2\)"),
    "TorchScript": (script, "TorchScript"),
    "pickle": (lambda: pickle.dumps({"weight": 1}), "plain Python pickle"),
    "number": (lambda: saved_bytes(3), "holds a .*int; needed is a module or a state_dict"),
    "no tensors": (lambda: saved_bytes({"epoch": 3, "args": {"lr": 0.1}}), "holds no weights .its entries: 'epoch', 'args'"),
    "list": (lambda: saved_bytes([torch.zeros(3)]), "holds a .*list"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_files_that_are_no_models_are_refused(here, kind):
    make, needle = UNUSABLE[kind]
    (here / "model.pt").write_bytes(make())
    with pytest.raises(BadInput, match=needle) as refusal:
        load_model("model.pt", arch="small_net.py:net")
    assert "model.pt" in str(refusal.value) and "\n" not in str(refusal.value) and refusal.value.exit_code == 2


def test_every_truncation_of_a_model_file_is_refused(here):
    for whole in (saved_bytes(net().state_dict()), saved_bytes(net())):
        for size in range(1, len(whole), 211):
            (here / "model.pt").write_bytes(whole[:size])
            with pytest.raises(BadInput):
                load_model("model.pt", arch="small_net.py:net")


def test_safetensors_whose_length_begins_as_a_pickle_are_opened(here):
    whole = b""
    for padding in range(40):  # headers are padded to multiples of eight bytes, so that one of 32 begins so
        save_file(net().state_dict(), "model.safetensors", metadata={"format": "p" * 8 * padding})
        whole = Path("model.safetensors").read_bytes()
        if whole[0] == 0x80:
            break
    assert whole[0] == 0x80
    assert same_weights(load_model("model.safetensors", arch="small_net.py:net").module, net())


def test_a_folder_of_transformers_is_told_with_what_to_give(here):
    Path("vit").mkdir()
    Path("vit/config.json").write_text("{}")
    save_file(net().state_dict(), "vit/model.safetensors")
    with pytest.raises(BadInput, match=r"Give vit/model\.safetensors with --arch hf:vit"):
        load_model("vit")


def test_truncated_safetensors_are_refused(here):
    save_file(net().state_dict(), "model.safetensors")
    whole = (here / "model.safetensors").read_bytes()
    for size in (4, 20, len(whole) - 5):
        (here / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(BadInput, match="truncated, damaged"):
            load_model("model.safetensors", arch="small_net.py:net")


def test_formats_without_checksums_are_named(here):
    save_file(net().state_dict(), "model.safetensors")
    torch.save(net().state_dict(), "old.pt", _use_new_zipfile_serialization=False)
    for name, kind in (("model.safetensors", "a .safetensors file"), ("old.pt", "a file of torch.save before torch 1.6")):
        notes = load_model(name, arch="small_net.py:net").notes
        assert sum(f"{name} is {kind}, a format without checksums" in note for note in notes) == 1


def test_missing_file_and_folder_are_refused(here):
    with pytest.raises(BadInput, match=r"no model file missing.pt"):
        load_model("missing.pt")
    with pytest.raises(BadInput, match=r"folder without graph.json and weights.safetensors \(it holds small_net.py"):
        load_model(here)


def test_load_refuses_what_is_not_its_own(here):
    with pytest.raises(BadInput, match=r"needed is a model.compressed folder"):
        load(stored(net()))


def test_values_that_are_no_numbers_are_named(here):
    module = net()
    with torch.no_grad():
        module[0].weight[0, 0, 0, :2] = torch.tensor([float("nan"), float("inf")])
    with pytest.raises(BadInput, match=r"2 values of 108 in 0.weight .*NaN"):
        load_model(stored(module))
    with pytest.raises(BadInput, match=r"in 0.weight"):
        load_model(stored(module.state_dict()), arch="small_net.py:net")
    module = net()
    module[1].running_var[1] = float("inf")
    with pytest.raises(BadInput, match=r"1.running_var .*infinite"):
        load_model(stored(module))


def test_infinite_masks_in_buffers_are_no_mistake(here):
    module = net().eval()
    module.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    assert load_model(stored(module), trust_pickle=True).notes == ()


@pytest.mark.parametrize("kind", ["complex", "sparse", "quantized"])
def test_odd_weights_are_refused(here, kind):
    weights = net().state_dict()
    tensor = weights["5.weight"]
    if kind == "quantized":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # quantized tensors are deprecated, the files are still there
            weights["5.weight"] = torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)
    else:
        weights["5.weight"] = tensor.to(torch.complex64) if kind == "complex" else tensor.to_sparse()
    with pytest.raises(BadInput, match=f"{kind}.*5.weight"):
        load_model(stored(weights), arch="small_net.py:net")


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.int64])
def test_codes_of_a_quantized_model_are_not_taken_for_its_weights(here, kind):
    weights = net().state_dict()
    weights["5.weight"] = (weights["5.weight"] * 127).to(kind)
    with pytest.raises(BadInput, match=r"has whole numbers \(.*\) in 5.weight.*before it was quantized"):
        load_model(stored(weights), arch="small_net.py:net")


# ------------------------------------------------------------------------------------------------------------- artifacts


def test_model_without_an_input_size_is_refused_with_how(here):
    with pytest.raises(BadInput, match="--input-shape CxHxW"):
        open_artifact(stored(net()))


def test_artifact_carries_the_notes_and_the_same_inputs_every_time(here):
    path = stored(net().train())
    first, second = (open_artifact(path, input_shapes=((3, 8, 8),)) for _ in range(2))
    assert first.notes == ("The module was saved in training mode; it is used in eval mode.",)
    assert torch.equal(first.inputs[0], second.inputs[0]) and not first.module.training


def test_wrong_input_size_is_refused(here):
    with pytest.raises(BadInput, match=r"input shape is 5x8x8.*takes 3 channels.*--input-shape"):
        open_artifact(stored(net()), input_shapes=((5, 8, 8),))


def test_model_with_two_inputs_opens_with_two_shapes_and_is_refused_with_one(here):
    (here / "two.py").write_text(
        "from torch import nn\nclass Two(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 4, 3)\n    def forward(self, x, y):\n        return self.conv(x) + self.conv(y)\n"
    )
    path = stored({"conv.weight": torch.zeros(4, 3, 3, 3), "conv.bias": torch.zeros(4)})
    assert len(open_artifact(path, arch="two.py:Two", input_shapes=((3, 8, 8), (3, 8, 8))).inputs) == 2
    with pytest.raises(BadInput, match="once per model input"):
        open_artifact(path, arch="two.py:Two", input_shapes=((3, 8, 8),))


def test_control_flow_on_values_names_the_line(here):
    (here / "flow.py").write_text(
        "from torch import nn\nclass Flow(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 4, 3)\n    def forward(self, x):\n        x = self.conv(x)\n"
        "        return x if x.sum() > 0 else -x\n"
    )
    path = stored({"conv.weight": torch.zeros(4, 3, 3, 3), "conv.bias": torch.zeros(4)})
    with pytest.raises(UnsupportedModel, match=r"flow.py:8"):
        open_artifact(path, arch="flow.py:Flow", input_shapes=((3, 8, 8),))


def test_shapes_are_read_from_text():
    assert parse_shape("3x224x224") == (3, 224, 224) and parse_shape("1,28,28") == (1, 28, 28)
    for text in ("", "3x", "0x2", "-1x3", "axb", "3.5x2"):
        with pytest.raises(BadInput, match="--input-shape"):
            parse_shape(text)


# -------------------------------------------------------------------------------------------------- the format before 0.2


def write_legacy_tar(path, saved):
    """What torch.save wrote before version 0.2, as far as the reader of it goes."""
    tensors = list(saved.values()) if isinstance(saved, dict) else []
    storages, table = io.BytesIO(), io.BytesIO()

    def dump(value, file):
        pickle.dump(value, file, protocol=2)

    kinds = {torch.float32: torch.FloatStorage, torch.int64: torch.LongStorage}
    dump(len(tensors), storages)
    dump(len(tensors), table)
    for key, tensor in enumerate(tensors):
        dump((100 + key, "cpu", kinds[tensor.dtype]), storages)
        storages.write(struct.pack("<q", tensor.numel()) + tensor.contiguous().numpy().tobytes())
        dump((200 + key, 100 + key, torch.FloatTensor), table)
        table.write(struct.pack("<i4x", tensor.ndim) + struct.pack(f"<{tensor.ndim}q", *tensor.shape))
        table.write(struct.pack(f"<{tensor.ndim}q", *tensor.stride()) + struct.pack("<q", 0))
    dump([], storages)

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return 200 + next(i for i, t in enumerate(tensors) if t is obj) if isinstance(obj, torch.Tensor) else None

    body = io.BytesIO()
    Pickler(body, protocol=2).dump(OrderedDict(saved) if isinstance(saved, dict) else saved)
    with tarfile.open(path, "w") as file:
        for name, part in (("storages", storages), ("tensors", table), ("pickle", body)):
            info = tarfile.TarInfo(name)
            info.size = part.tell()
            part.seek(0)
            file.addfile(info, part)
