"""Networks of other libraries, as they are built there: traced, how much is within reach, and whether what is done is exact.

    python benchmarks/coverage.py                      # what results/coverage.json lacks, library by library
    python benchmarks/coverage.py --library timm       # one of them
    python benchmarks/coverage.py --again --quick      # a few of each, anew

Weights are random, and nothing is downloaded. timm: one small network of each family, by the letters that names begin with.
For each network:

    opaque      submodules that stay whole
    macs        share of multiply-accumulates within reach of removing channels (`compress explain --reach`), likewise params
    removed     a random third of every removable group removed, against masked: largest difference over the largest output
    saved       the smaller network saved and loaded: the same outputs, and a gradient for every parameter that the output needs
    onnx        the smaller network in ONNX Runtime: difference over what is allowed
    refused     what was said instead
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from results_io import RESULTS, write
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo import distance, random_edits, time_limit

import exporters
from compress.artifact import Artifact
from compress.checkpoint.load import load
from compress.checkpoint.save import save
from compress.graph.channels.solve import solve
from compress.graph.surgery.remove import keep, mask
from compress.graph.trace.trace import trace
from compress.selection.reach import reach

TOLERANCE = 1e-4
LIMIT_S = 120
CHUNK = 8
"""Networks of one process: the libraries are slow to import."""
RESULT = "result: "
SMALL = [
    "test",
    "atto",
    "femto",
    "zepto",
    "pico",
    "nano",
    "tiny",
    "xxt",
    "xt",
    "xxs",
    "xs",
    "mini",
    "small",
    "_s",
    "_t",
    "_b",
    "18",
    "26",
]


Network = tuple[nn.Module, tuple[Tensor, ...]]


def images(size: int = 64, channels: int = 3) -> tuple[Tensor, ...]:
    return (torch.randn(1, channels, size, size),)


# ---- transformers ----------------------------------------------------------------------------------------------------------

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
VIT = {**SIZES, "image_size": 64, "patch_size": 16}
TEXT = {**SIZES, "vocab_size": 128, "max_position_embeddings": 64}
STAGES = {"hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1]}
WINDOWS = {"image_size": 64, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
SOUND = {**SIZES, "conv_dim": [32, 32, 32], "conv_stride": [5, 4, 4], "conv_kernel": [10, 8, 8]}
SOUND |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SPEECH = {**MARKS, "d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128, "num_mel_bins": 20}
SPEECH |= {"max_source_positions": 50, "decoder_layers": 1, "vocab_size": 200, "decoder_start_token_id": 1}
SPECTRA = {**SIZES, "max_length": 64, "num_mel_bins": 32, "patch_size": 16, "frequency_stride": 16, "time_stride": 16}

TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", VIT),
    "deit": ("DeiTForImageClassification", VIT),
    "beit": ("BeitForImageClassification", VIT),
    "dinov2": ("Dinov2ForImageClassification", VIT),
    "dinov2_with_registers": ("Dinov2WithRegistersForImageClassification", VIT),
    "data2vec-vision": ("Data2VecVisionForImageClassification", VIT),
    "swin": ("SwinForImageClassification", WINDOWS),
    "swinv2": ("Swinv2ForImageClassification", WINDOWS),
    "convnext": ("ConvNextForImageClassification", STAGES),
    "convnextv2": ("ConvNextV2ForImageClassification", STAGES),
    "resnet": ("ResNetForImageClassification", {"embedding_size": 16, **STAGES}),
    "regnet": ("RegNetForImageClassification", {"embedding_size": 16, "groups_width": 8, **STAGES}),
    "mobilenet_v1": ("MobileNetV1ForImageClassification", {}),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", {}),
    "mobilevit": ("MobileViTForImageClassification", {"image_size": 64}),
    "mobilevitv2": ("MobileViTV2ForImageClassification", {"image_size": 64}),
    "efficientnet": ("EfficientNetForImageClassification", {}),
    "segformer": ("SegformerForSemanticSegmentation", {"hidden_sizes": [16, 32, 64, 64], "decoder_hidden_size": 64}),
    "poolformer": ("PoolFormerForImageClassification", {}),
    "pvt": ("PvtForImageClassification", {"image_size": 64}),
    "levit": ("LevitForImageClassification", {}),
    "cvt": ("CvtForImageClassification", {}),
    "focalnet": ("FocalNetForImageClassification", {"image_size": 64}),
    "bit": ("BitForImageClassification", {}),
    "hiera": ("HieraForImageClassification", {}),
    "clip_vision_model": ("CLIPVisionModel", VIT),
    "siglip_vision_model": ("SiglipVisionModel", VIT),
    "yolos": ("YolosForObjectDetection", {**VIT, "image_size": [64, 64], "num_detection_tokens": 10}),
    "bert": ("BertForSequenceClassification", TEXT),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {"vocab_size": 128, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
    ),
    "roberta": ("RobertaForSequenceClassification", TEXT),
    "electra": ("ElectraForSequenceClassification", {**TEXT, "embedding_size": 32}),
    "albert": ("AlbertForSequenceClassification", {**TEXT, "embedding_size": 32}),
    "deberta-v2": ("DebertaV2ForSequenceClassification", TEXT),
    "mpnet": ("MPNetForSequenceClassification", TEXT),
    "xlm-roberta": ("XLMRobertaForSequenceClassification", TEXT),
    "modernbert": ("ModernBertForSequenceClassification", {**TEXT, **MARKS, "cls_token_id": 1, "sep_token_id": 2}),
    "gpt2": (
        "GPT2LMHeadModel",
        {**MARKS, "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64, "use_cache": False},
    ),
    "llama": ("LlamaForSequenceClassification", {**TEXT, "num_key_value_heads": 2, "pad_token_id": 0, "use_cache": False}),
    "wav2vec2": ("Wav2Vec2ForSequenceClassification", SOUND),
    "hubert": ("HubertForSequenceClassification", SOUND),
    "whisper": ("WhisperForAudioClassification", SPEECH),
    "audio-spectrogram-transformer": ("ASTForAudioClassification", SPECTRA),
}
FULL_SIZE = ("levit", "hiera")
OTHER_INPUTS: dict[str, Callable[[], tuple[Tensor, ...]]] = {
    "wav2vec2": lambda: (torch.randn(1, 4000),),
    "hubert": lambda: (torch.randn(1, 4000),),
    "whisper": lambda: (torch.randn(1, 20, 100),),
    "audio-spectrogram-transformer": lambda: (torch.randn(1, 64, 32),),
}


def transformers(name: str) -> Network:
    library: Any = importlib.import_module("transformers")
    kind, settings = TRANSFORMERS[name]
    model = getattr(library, kind)(library.AutoConfig.for_model(name, **settings))
    if name in OTHER_INPUTS:
        return model, OTHER_INPUTS[name]()
    if "vocab_size" in settings:
        return model, (torch.randint(5, 100, (1, 12)),)
    return model, images(224 if name in FULL_SIZE else 64)


# ---- the others ------------------------------------------------------------------------------------------------------------

TASKS = {"": "Detection", "-seg": "Segmentation", "-pose": "Pose", "-obb": "OBB", "-cls": "Classification"}
YOLO = [f"{version}n{task}" for version in ("yolov8", "yolo11") for task in TASKS]
YOLO += ["yolov5n", "yolov9t", "yolov10n", "yolo12n", "yolo26n"]


def ultralytics(name: str) -> Network:
    tasks: Any = importlib.import_module("ultralytics.nn.tasks")
    task = TASKS["-" + name.partition("-")[2] if "-" in name else ""]
    return getattr(tasks, f"{task}Model")(f"{name}.yaml", verbose=False), images(160)


DECODERS = "Unet UnetPlusPlus MAnet Linknet FPN PSPNet DeepLabV3 DeepLabV3Plus PAN UPerNet Segformer DPT"
ENCODERS = "resnet18 resnext50_32x4d timm-resnest14d timm-res2net50_26w_4s timm-regnetx_002 timm-gernet_s se_resnet50 xception"
ENCODERS += " timm-skresnet18 densenet121 inceptionresnetv2 efficientnet-b0 mobilenet_v2 dpn68 vgg11_bn mit_b0 mobileone_s0"
ENCODERS += " tu-convnext_atto"


def segmentation(name: str) -> Network:
    library: Any = importlib.import_module("segmentation_models_pytorch")
    decoder, _, encoder = name.partition("/")
    encoder = encoder or ("tu-vit_tiny_patch16_224" if decoder == "DPT" else "resnet18")
    made = getattr(library, decoder)(encoder_name=encoder, encoder_weights=None, classes=3)
    return made, images(224 if decoder == "DPT" else 128)


PLAIN = (
    "resnet18 vgg11_bn mobilenet_v2 mobilenet_v3_small efficientnet_b0 densenet121 regnet_y_400mf shufflenet_v2_x0_5 mnasnet0_5"
)
PLAIN += " squeezenet1_1 convnext_tiny swin_t swin_v2_t vit_b_32 googlenet"
DENSE = "fcn_resnet50 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large"
VIDEO = "r3d_18 mc3_18 r2plus1d_18 s3d mvit_v1_b swin3d_t"
DETECTION = "ssdlite320_mobilenet_v3_large retinanet_resnet50_fpn fasterrcnn_mobilenet_v3_large_320_fpn"


def torchvision(name: str) -> Network:
    models: Any = importlib.import_module("torchvision.models")
    options = {"weights_backbone": None} if name in (DENSE + " " + DETECTION).split() else {}
    options |= {"init_weights": False} if name == "googlenet" else {}
    made = models.get_model(name, weights=None, **options)
    if name in VIDEO.split():
        size = 224 if name in ("mvit_v1_b", "s3d") else 112
        return made, (torch.randn(1, 3, 16, size, size),)
    return made, images(320 if name in DETECTION.split() else 224 if name == "vit_b_32" else 96)


def families() -> list[str]:
    """A small network of each family of timm."""
    library: Any = importlib.import_module("timm")
    found: dict[str, list[str]] = {}
    for name in library.list_models():
        found.setdefault(re.match(r"[a-z]+", name)[0], []).append(name)  # pyright: ignore[reportOptionalSubscript]
    return [min(names, key=size_of_name) for names in found.values()]


def size_of_name(name: str) -> tuple[int, int, str]:
    """How small a network is by the words in its name, then the shortest name."""
    return next((i for i, word in enumerate(SMALL) if word in name), len(SMALL)), len(name), name


def timm(name: str) -> Network:
    library: Any = importlib.import_module("timm")
    made = library.create_model(name, pretrained=False)
    channels, height, width = made.default_cfg["input_size"]
    return made, (torch.randn(1, channels, height, width),)


LIBRARIES: dict[str, tuple[Callable[[str], Network], Callable[[], list[str]], str]] = {
    "transformers": (transformers, lambda: list(TRANSFORMERS), "transformers"),
    "ultralytics": (ultralytics, lambda: YOLO, "ultralytics"),
    "segmentation_models_pytorch": (
        segmentation,
        lambda: [*DECODERS.split(), *(f"Unet/{e}" for e in ENCODERS.split())],
        "segmentation-models-pytorch",
    ),
    "torchvision": (torchvision, lambda: f"{PLAIN} {DENSE} {VIDEO} {DETECTION}".split(), "torchvision"),
    "timm": (timm, families, "timm"),
}
EXPORTED = ("transformers", "ultralytics", "segmentation_models_pytorch")
"""Whose ONNX files are compared here; those of torchvision are in results/zoo.json, and exporting takes longer than all else."""


# ---- what is looked at -----------------------------------------------------------------------------------------------------


def looked_at(library: str, name: str) -> dict[str, Any]:
    torch.manual_seed(0)
    model, inputs = LIBRARIES[library][0](name)
    randomise(model.eval())
    began = time.perf_counter()
    try:
        module = trace(model, inputs)
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}".splitlines()[0][:240]}
    channels = solve(module, inputs)
    row: dict[str, Any] = {"seconds": round(time.perf_counter() - began, 2), "opaque": len(module.meta["opaque"])}
    found = reach(Artifact(module, inputs))
    row |= {"groups": found.groups, "macs": round(found.macs, 3), "params": round(found.params, 3)}
    if found.obstacles:
        row["dearest"] = f"{found.obstacles[0].macs:.0%} of the MACs: {found.obstacles[0].why}"[:200]
    edits = random_edits(channels.removable)
    small = keep(module, channels, edits)
    masked = mask(module, channels, edits)
    x = tuple(torch.cat([t, t.roll(1, -1)]) for t in inputs)
    with torch.no_grad():
        row["removed"] = far(small(*x), masked(*x))
        row["seen"] = far(small(*x), module(*x))
    row["saved"] = stored(small, x, inputs)
    if library in EXPORTED:
        row["onnx"] = exported(small, x, inputs)
    return row


def randomise(model: nn.Module) -> None:
    """Nothing that is 0 or 1 everywhere, where mistakes would be invisible."""
    with torch.no_grad():
        for owner in model.modules():
            for key, t in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)):
                if key == "running_mean":
                    t.normal_(0, 0.1)
                elif key == "running_var" or (key == "weight" and t.ndim == 1):
                    t.uniform_(0.5, 1.5)
                elif isinstance(t, nn.Parameter) and bool(t.min() == t.max()):
                    t.normal_(0, 0.02 if t.ndim > 1 else 0.1)


def tensors(value: Any) -> list[Tensor]:
    return [t for t in tree_leaves(value) if isinstance(t, Tensor)]


def far(one: Any, other: Any) -> float:
    pairs = zip(tensors(one), tensors(other), strict=True)
    return max((distance(a.double(), b.double()) for a, b in pairs if b.numel() and b.abs().max() > 0), default=0.0)


def stored(small: Any, x: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> bool | str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            save(Artifact(small, inputs), Path(folder) / "model.compressed")
            again = load(Path(folder) / "model.compressed")
        except Exception as error:
            return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    with torch.no_grad():
        same = far(again(*x), small(*x)) == 0
    out = [t for t in tensors(again.train()(*x)) if t.requires_grad]
    sum(t.float().sum() for t in out).backward()  # pyright: ignore[reportAttributeAccessIssue]
    return same and any(p.grad is not None for p in again.parameters())


def exported(small: Any, x: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> float | str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = exporters.export("onnx", small, inputs, Path(folder) / "model.onnx", metadata={}, samples=[x])
        except Exception as error:
            return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    assert done.parity is not None
    return round(done.parity.worst_abs / done.parity.tolerance, 4)


# ---- running and telling ---------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", nargs="+", default=list(LIBRARIES), choices=LIBRARIES)
    parser.add_argument("--again", action="store_true", help="also what has a row")
    parser.add_argument("--quick", action="store_true", help="every fifth")
    parser.add_argument("--networks", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.networks:
        for name in given.networks:
            tell(given.library[0], name)
        return
    path = RESULTS / "coverage.json"
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text())["networks"] if path.exists() else {}
    for library in given.library:
        names = LIBRARIES[library][1]()[:: 5 if given.quick else 1]
        kept = rows.setdefault(library, {})
        wanted = [n for n in names if given.again or n not in kept]
        for i in range(0, len(wanted), CHUNK):
            for name, row in told(library, wanted[i : i + CHUNK]):
                kept[name] = row
                print(f"{library:28} {name:36} {json.dumps(row)[:200]}", flush=True)
            write("coverage", {"versions": versions(), "summary": [summary(k, v) for k, v in rows.items()], "networks": rows})


def tell(library: str, name: str) -> None:
    """What the process of some networks does with one."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        with time_limit(LIMIT_S):
            row = looked_at(library, name)
    except Exception as error:
        row = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:240]}
    print(RESULT + json.dumps([name, row]), flush=True)


def told(library: str, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    command = [sys.executable, __file__, "--library", library, "--networks", *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    limit = LIMIT_S * len(names) * 2
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment, check=False)
    found = dict(json.loads(line.removeprefix(RESULT)) for line in done.stdout.splitlines() if line.startswith(RESULT))
    problem = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:240]
    for name in names:
        yield name, found.get(name, {"error": problem})


def versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in ("torch", *(row[2] for row in LIBRARIES.values())):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def summary(library: str, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    traced = [row for row in rows.values() if "macs" in row]
    onnx = [row["onnx"] for row in traced if "onnx" in row]
    return {
        "library": library,
        "networks": len(rows),
        "traced": sum(not row["opaque"] for row in traced),
        "in_part": sum(bool(row["opaque"]) for row in traced),
        "half": sum(row["macs"] >= 0.5 for row in traced),
        "nothing": sum(row["macs"] == 0 for row in traced),
        "exact": sum(row.get("removed", 1) < TOLERANCE for row in traced),
        "saved": sum(row.get("saved") is True for row in traced),
        "onnx": f"{sum(isinstance(o, float) and o <= 1 for o in onnx)} of {len(onnx)}" if onnx else "not run",
        "refused": sum("refused" in row for row in rows.values()),
        "failed": sum("error" in row for row in rows.values()),
    }


if __name__ == "__main__":
    main()
