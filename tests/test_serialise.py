"""A traced model survives JSON bit for bit, and a stored graph cannot do more than compute."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from compress.checkpoint.allowlist import LAYERS
from compress.checkpoint.deserialize import expected_tensors, stored_tensors
from compress.checkpoint.json_values import decode, encode
from compress.checkpoint.serialize import from_json, to_json
from compress.errors import BadInput, UnsupportedModel
from compress.graph.trace.trace import trace

IMAGE = torch.linspace(-1, 1, 2 * 4 * 8 * 8).reshape(2, 4, 8, 8)
SIGNAL, VOLUME, TOKENS = IMAGE[:, :, 0], IMAGE.reshape(2, 4, 4, 4, 4), IMAGE[:, 0]


def reload(module):
    return from_json(to_json(module), {name: tensor.detach().clone() for name, tensor, _ in stored_tensors(module)})


def flat(output):
    if isinstance(output, dict):
        output = tuple(output.values())
    return [t for part in output for t in flat(part)] if isinstance(output, tuple | list) else [output] * (output is not None)


def assert_same(module, again, *inputs):
    torch.manual_seed(1)
    before = flat(module(*inputs))
    torch.manual_seed(1)
    after = flat(again(*inputs))
    assert len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def wrap(layer, call=lambda layer, x: layer(x)):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return call(self.layer, x)

    return Net()


# What each layer class is made with; classes of one size family share a line. The default is no argument at all.
ARGUMENTS = {
    "Conv": dict(in_channels=4, out_channels=6, kernel_size=3, padding="same", padding_mode="circular", groups=2, bias=False),
    "ConvTranspose": dict(in_channels=4, out_channels=6, kernel_size=3, stride=2, output_padding=1, groups=2, dilation=2),
    "Linear": dict(in_features=8, out_features=3, bias=False),
    "Bilinear": dict(in1_features=8, in2_features=8, out_features=3),
    "BatchNorm": dict(num_features=4, eps=1e-3, momentum=None),
    "SyncBatchNorm": dict(num_features=4, affine=False),
    "InstanceNorm": dict(num_features=4, affine=True, track_running_stats=True),
    "GroupNorm": dict(num_groups=2, num_channels=4, affine=False),
    "LayerNorm": dict(normalized_shape=(8, 8), bias=False),
    "RMSNorm": dict(normalized_shape=8, eps=1e-4),
    "LocalResponseNorm": dict(size=2, k=2.0),
    "CrossMapLRN2d": dict(size=2, alpha=0.1),
    "PReLU": dict(num_parameters=4),
    "Hardtanh": dict(min_val=-0.5, max_val=float("inf")),
    "Threshold": dict(threshold=0.1, value=20.0, inplace=True),
    "GELU": dict(approximate="tanh"),
    "ELU": dict(alpha=2.0, inplace=True),
    "GLU": dict(dim=1),
    "Softmax2d": {},
    "Softmax": dict(dim=1),
    "LogSoftmax": dict(dim=1),
    "Softmin": dict(dim=1),
    "MaxPool": dict(kernel_size=3, stride=2, padding=1, ceil_mode=True),
    "AvgPool": dict(kernel_size=2, padding=1, count_include_pad=False),
    "LPPool": dict(norm_type=2, kernel_size=2),
    "AdaptiveAvgPool": dict(output_size=3),
    "AdaptiveMaxPool": dict(output_size=3),
    "MaxUnpool": dict(kernel_size=2),
    "Dropout": dict(p=0.2, inplace=True),
    "ZeroPad": dict(padding=1),
    "ReflectionPad": dict(padding=1),
    "ReplicationPad": dict(padding=1),
    "CircularPad": dict(padding=1),
    "ConstantPad": dict(padding=(1, 2), value=3.5),
    "Upsample": dict(scale_factor=2, mode="bilinear", align_corners=False),
    "UpsamplingNearest": dict(scale_factor=2),
    "UpsamplingBilinear": dict(size=(5, 6)),
    "PixelShuffle": dict(upscale_factor=2),
    "PixelUnshuffle": dict(downscale_factor=2),
    "ChannelShuffle": dict(groups=2),
    "Unflatten": dict(dim=1, unflattened_size=(2, 2)),
    "Fold": dict(output_size=(5, 4), kernel_size=2),
    "Unfold": dict(kernel_size=2, padding=1),
    "Embedding": dict(num_embeddings=5, embedding_dim=3, padding_idx=1),
    "MultiheadAttention": dict(embed_dim=8, num_heads=2, batch_first=True, add_bias_kv=True),
    "RNN": dict(input_size=8, hidden_size=3, nonlinearity="relu"),
    "LSTM": dict(input_size=8, hidden_size=3, num_layers=2, bidirectional=True, batch_first=True),
    "GRU": dict(input_size=8, hidden_size=3, bias=False),
    **{cell: dict(input_size=8, hidden_size=3) for cell in ("RNNCell", "LSTMCell", "GRUCell")},
    "StochasticDepth": dict(p=0.3, mode="row"),
    "DropBlock": dict(p=0.3, block_size=3),
    "FrozenBatchNorm": dict(num_features=4, eps=1e-4),
    "PartialNorm": dict(channels=8, of=12, axis=-1, centered=False, bias=False),
    "Line": dict(channels=8, axis=-1),
}
CALLS = {
    "MultiheadAttention": lambda layer, x: layer(x, x, x),
    "Bilinear": lambda layer, x: layer(x, x),
    **{cell: lambda layer, x: layer(x[:, 0]) for cell in ("RNNCell", "LSTMCell", "GRUCell")},
    "CosineSimilarity": lambda layer, x: layer(x, x),
    "MaxUnpool": lambda layer, x: layer(x, torch.zeros_like(x, dtype=torch.int64)),
    "Embedding": lambda layer, x: layer(torch.gt(x, 0).long()),
    "Fold": lambda layer, x: layer(torch.cat((x, x[:, :, :4]), 2)),
}


def with_leaf(model, leaf):
    tracer = torch.fx.Tracer()
    tracer.is_leaf_module = lambda module, name: module is leaf
    return torch.fx.GraphModule(model, tracer.trace(model)).eval()


def input_for(name):
    family = name.rstrip("123d")
    if family.removesuffix("Cell") in ("MultiheadAttention", "RNN", "LSTM", "GRU"):
        return TOKENS
    if name.endswith("1d") or name == "Fold":
        return SIGNAL
    return VOLUME if name.endswith("3d") else IMAGE


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_class_comes_back_as_it_was(name):
    torch.manual_seed(0)
    family = name if name in ARGUMENTS else name.rstrip("123").removesuffix("1d").removesuffix("2d").removesuffix("3d")
    layer = LAYERS[name][0](**ARGUMENTS.get(family, {}))
    if name.startswith("ConstantPad"):
        layer = LAYERS[name][0]((1, 2) * int(name[-2]), 3.5)
    module = with_leaf(wrap(layer, CALLS.get(family, CALLS.get(name, lambda layer, x: layer(x)))), layer)
    again = reload(module)
    assert type(again.layer) is type(layer) and repr(again.layer) == repr(layer)
    assert list(again.state_dict()) == list(module.state_dict())
    assert_same(module, again, input_for(name).clone())


class Everything(nn.Module):
    """One of each thing that a graph can hold besides layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.add_module("odd-name", nn.Conv2d(8, 8, 1))
        self.twice = nn.Conv2d(8, 8, 1)
        self.alias = self.twice
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.right.weight = self.left.weight
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))
        self.frozen = nn.Parameter(torch.ones(8), requires_grad=False)
        self.register_buffer("table", torch.arange(8))
        self.register_buffer("hidden", torch.ones(8), persistent=False)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = F.relu(self.stem(x)) * self.scale
        x = self.alias(self.twice(getattr(self, "odd-name")(x)))
        n, c = x.size(0), x.shape[1]
        x = torch.cat(x.view(n, 2, c // 2, 8, 8).transpose(1, 2).reshape(n, c, 8, 8).chunk(2, dim=1), 1)
        x = F.pad(x, (1, 1), value=float("-inf"))[..., 1:-1].clamp(min=-1e9).to(torch.float32)
        y = x.mean((2, 3))[:, self.table] * self.hidden + self.frozen
        return {"scores": self.drop(self.right(self.left(y))), "map": (x, None)}


def test_parameters_buffers_aliases_and_arguments_survive():
    torch.manual_seed(0)
    module = torch.fx.symbolic_trace(Everything()).eval()
    again = reload(module)
    assert_same(module, again, IMAGE)
    assert list(again.state_dict()) == list(module.state_dict())
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in module.named_parameters()]
    assert again.right.weight is again.left.weight
    assert not again.frozen.requires_grad and again.scale.requires_grad
    assert to_json(again) == to_json(module)


def test_reloaded_model_trains_and_switches_modes():
    torch.manual_seed(0)
    again = reload(torch.fx.symbolic_trace(Everything()))
    assert not again.training and not again.drop.training
    again.train()
    assert again.stem[1].training if isinstance(again.stem, nn.Sequential) else again.get_submodule("stem.1").training
    statistics, weight = again.get_submodule("stem.1").running_mean.clone(), again.left.weight.detach().clone()
    optimizer = torch.optim.SGD([p for p in again.parameters() if p.requires_grad], lr=0.1)
    again(IMAGE)["scores"].square().mean().backward()
    optimizer.step()
    assert not torch.equal(again.get_submodule("stem.1").running_mean, statistics)
    assert not torch.equal(again.left.weight, weight)


def test_deep_copies_of_a_reloaded_model_are_independent():
    again = reload(torch.fx.symbolic_trace(Everything()))
    other = copy.deepcopy(again)
    with torch.no_grad():
        other.scale.zero_()
    assert again.scale.abs().sum() > 0
    assert_same(again, copy.deepcopy(again), IMAGE)


def test_weights_are_zero_where_none_are_given():
    module = from_json(to_json(torch.fx.symbolic_trace(Everything())))
    assert all(not tensor.any() for tensor in module.state_dict().values())


def test_tensor_list_names_every_weight_once():
    module = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    assert expected_tensors(to_json(module)) == {
        "0.weight": ("float32", (4, 3, 1, 1)),
        "0.bias": ("float32", (4,)),
        "1.weight": ("float32", (4,)),
        "1.bias": ("float32", (4,)),
        "1.running_mean": ("float32", (4,)),
        "1.running_var": ("float32", (4,)),
        "1.num_batches_tracked": ("int64", ()),
    }


VALUES = [1, True, None, "text", 0.5, float("inf"), (1, (2,)), [1, [2]], {"a": (1,)}, slice(None, -1, 2), Ellipsis]
VALUES += [torch.Size([1, 2]), torch.float16, torch.device("cpu"), torch.channels_last, 2**63 - 1]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_arguments_of_every_kind_come_back_with_their_type(value):
    again = decode(json.loads(json.dumps(encode(value), allow_nan=False)), {})
    assert again == value and type(again) is type(value)


# ------------------------------------------------------------------------------------------------------------- refusals


class Custom(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def user_function(x):  # by values: no run can look into it once and for all
    return x if bool(x.sum() < 1e9) else -x


torch.fx.wrap("user_function")


@pytest.mark.parametrize(
    ("model", "needle"),
    [
        (nn.Sequential(nn.Conv2d(4, 4, 1), Custom()), "submodule '1'.*Custom.*cannot be traced"),
        (wrap(nn.ReLU(), lambda layer, x: user_function(layer(x))), "user_function"),
        (wrap(nn.ReLU(), lambda layer, x: layer(x).cuda()), r"\.cuda\(\)"),
        (wrap(nn.ReLU(), lambda layer, x: (layer(x), x.grad)), r"attribute \.grad"),
    ],
)
def test_what_needs_code_is_refused_with_its_name(model, needle):
    try:
        module = trace(model, (IMAGE,))
    except (BadInput, UnsupportedModel):  # .cuda() does not run here; the graph alone is enough
        module = torch.fx.symbolic_trace(model)
    with pytest.raises(UnsupportedModel, match=needle):
        to_json(module)


def test_layer_with_a_hook_is_refused():
    layer = nn.ReLU()
    layer.register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedModel, match="'layer' carries hooks"):
        to_json(torch.fx.symbolic_trace(wrap(layer)))


def test_layer_whose_attributes_lie_about_its_weights_is_refused():
    layer = nn.Conv2d(4, 8, 1)
    layer.weight = nn.Parameter(torch.zeros(6, 4, 1, 1))
    with pytest.raises(UnsupportedModel, match=r"weight is \(6, 4, 1, 1\)"):
        to_json(torch.fx.symbolic_trace(wrap(layer)))


def document():
    return json.loads(to_json(torch.fx.symbolic_trace(wrap(nn.Conv2d(4, 4, 1), lambda layer, x: layer(x).relu() + x.shape[0]))))


NOTHING = {"class": "Identity", "args": {}}
INJECTION = 'x") or __import__("os").system("true") or ("'


def node(d, op):
    return next(n for n in d["nodes"] if n["op"] == op)


def change(**edits):
    """The edit of a document that sets dotted keys; "nodes.OP.key" means the first node of that kind."""

    def apply(d):
        for path, value in edits.items():
            *parents, last = path.split("__")
            place = d
            for key in parents:
                place = node(d, key) if place is d["nodes"] else place[key]
            place[last] = value

    return apply


ATTACKS = {
    "unknown operation": change(nodes__call_function__target="os.system"),
    "eval": change(nodes__call_function__target="builtins.eval"),
    "operation of torch that is not listed": change(nodes__call_function__target="torch.load"),
    "unknown layer": change(layers__layer__class="Sequential"),
    "layer class by path": change(layers__layer__class="torch.nn.Conv2d"),
    "unknown argument": change(layers__layer__args__device="cpu"),
    "dunder attribute": lambda d: node(d, "call_function").update(target="getattr", args=[{"node": "x"}, "__class__"]),
    "attribute that is not listed": lambda d: node(d, "call_function").update(target="getattr", args=[{"node": "x"}, "grad_fn"]),
    "attribute of something else": lambda d: node(d, "call_function").update(target="getattr", args=["x", "shape"]),
    "method that is not listed": change(nodes__call_method__target="register_hook"),
    "dunder method": change(nodes__call_method__target="__class__"),
    "method of a string": lambda d: node(d, "call_method").update(target="relu", args=["x"]),
    "code in a node name": change(nodes__placeholder__name=INJECTION),
    "code in an input name": change(nodes__placeholder__target="x=__import__('os').system('true')"),
    "code in an argument name": change(nodes__call_method__kwargs={"a=print()": 1}),
    "code in a layer target": change(nodes__call_module__target=INJECTION),
    "code in a layer name": lambda d: d["layers"].update({INJECTION: NOTHING}),
    "code in a tensor name": lambda d: d["tensors"].update({INJECTION: d["tensors"]["layer.bias"]}),
    "path in a layer name": lambda d: d["layers"].update({"../../etc/x": NOTHING}),
    "name of the graph module itself": lambda d: d["layers"].update(graph=NOTHING),
    "dunder layer name": lambda d: d["layers"].update(__class__=NOTHING),
    "keyword as a node name": change(nodes__placeholder__name="class"),
    "two nodes of one name": lambda d: d["nodes"].insert(1, dict(d["nodes"][0])),
    "a node that uses itself": change(nodes__call_module__args=[{"node": "layer"}]),
    "a node that uses a later one": change(nodes__call_module__args=[{"node": "output"}]),
    "no output": lambda d: d["nodes"].pop(),
    "two outputs": lambda d: d["nodes"].append(d["nodes"][-1] | {"name": "output_1"}),
    "a node behind the output": lambda d: d["nodes"].append(d["nodes"][1] | {"name": "behind"}),
    "node kind": change(nodes__call_module__op="root"),
    "attribute that is no tensor": lambda d: node(d, "call_module").update(op="get_attr", target="layer.forward", args=[]),
    "huge layer": change(layers__layer__args={"in_channels": 2**40, "out_channels": 2**40, "kernel_size": 1}),
    "huge tensor": lambda d: d["tensors"].update(big={"kind": "buffer", "dtype": "bool", "shape": [2**34 + 1]}),
    "negative size": lambda d: d["tensors"].update(big={"kind": "buffer", "dtype": "float32", "shape": [-1]}),
    "huge integer": change(nodes__call_module__args=[{"node": "x"}, 2**70]),
    "long string": change(nodes__call_module__args=["x" * 10_000]),
    "deep nesting": lambda d: node(d, "call_module").update(args=json.loads("[" * 40 + "]" * 40)),
    "sizes that differ from the layer": change(tensors__layer_weight={}),
    "shape that differs from the layer": lambda d: d["tensors"]["layer.weight"].update(shape=[5, 4, 1, 1]),
    "kind that differs from the layer": lambda d: d["tensors"]["layer.weight"].update(kind="buffer"),
    "type that is no type": lambda d: d["tensors"]["layer.weight"].update(dtype="nn"),
    "tensor missing from the list": lambda d: d["tensors"].pop("layer.bias"),
    "alias of nothing": lambda d: d["tensors"].update({"layer.bias": {"same_as": "nowhere"}}),
    "layer alias of itself": change(layers__layer={"same_as": "layer"}),
    "newer schema": change(schema=2),
    "other format": change(format="something"),
    "layers as a list": change(layers=[]),
    "number as a node": lambda d: d["nodes"].insert(0, 3),
    "a number that is none": change(nodes__call_module__args=[{"node": "x"}, {"float": "nan"}]),
    "unknown kind of value": change(nodes__call_module__args=[{"eval": "1"}]),
    "device that is none": change(nodes__call_module__args=[{"node": "x"}, {"device": "cpu'); print('"}]),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_stored_graph_that_oversteps_is_refused(attack):
    data = document()
    from_json(json.dumps(data))
    ATTACKS[attack](data)
    with pytest.raises(BadInput, match="stored graph"):
        from_json(json.dumps(data))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "[" * 100_000, '{"format": "compress.graph"}', '{"a": 1, "a": 2}', "1" * 5000]
)
def test_text_that_is_no_document_is_refused(text):
    with pytest.raises(BadInput, match="stored graph"):
        from_json(text)


def test_weights_that_do_not_fit_the_graph_are_refused():
    text = json.dumps(document())
    with pytest.raises(BadInput, match=r"hold nothing for 'layer.bias'"):
        from_json(text, {"layer.weight": torch.zeros(4, 4, 1, 1)})
    with pytest.raises(BadInput, match=r"hold \[2\] torch.float32 for 'layer.bias'"):
        from_json(text, {"layer.weight": torch.zeros(4, 4, 1, 1), "layer.bias": torch.zeros(2)})


# ------------------------------------------------------------------------------------------------------------------ zoo

SMALL = ["resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small"]
LARGE = [
    *("alexnet", "convnext_tiny", "densenet121", "densenet169", "efficientnet_b0", "efficientnet_v2_s", "googlenet"),
    *("inception_v3", "maxvit_t", "mnasnet0_5", "mnasnet1_3", "mobilenet_v2", "mobilenet_v3_large", "regnet_x_400mf"),
    *("regnet_y_400mf", "resnet50", "resnext50_32x4d", "shufflenet_v2_x2_0", "squeezenet1_0", "squeezenet1_1", "swin_t"),
    *("swin_v2_t", "vgg11", "vgg11_bn", "vit_b_32", "wide_resnet50_2"),
]
SEGMENTATION_AND_VIDEO = ["lraspp_mobilenet_v3_large", "r3d_18", "s3d", "mvit_v2_s"]


def zoo_model(name):
    sizes = {"maxvit_t": (3, 224, 224), "vit_b_32": (3, 224, 224), "inception_v3": (3, 96, 96), "mvit_v2_s": (3, 16, 224, 224)}
    sizes |= {"r3d_18": (3, 4, 32, 32), "s3d": (3, 16, 224, 224)}
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    options |= {"weights_backbone": None} if "lraspp" in name else {}
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, **options)
    return model.eval(), torch.randn(1, *sizes.get(name, (3, 64, 64)))


def assert_round_trip(name):
    model, x = zoo_model(name)
    module = trace(model, (x,))
    again = reload(module)
    with torch.no_grad():
        assert_same(module, again, x)
        assert_same(module, trace(again, (x,)), x)
    assert list(again.state_dict()) == list(module.state_dict())
    assert to_json(again) == to_json(module)


@pytest.mark.parametrize("name", SMALL)
def test_small_zoo_models_come_back_bit_equal(name):
    assert_round_trip(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE + SEGMENTATION_AND_VIDEO)
def test_zoo_models_come_back_bit_equal(name):
    assert_round_trip(name)
