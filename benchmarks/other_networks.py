"""Networks of other libraries, by library and name, as they are built there: random weights, small inputs, nothing downloaded."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

Network = tuple[nn.Module, tuple[Tensor, ...]]


def made(library: str, name: str) -> Network:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, inputs = LIBRARIES[library][0](name)
    randomise(model.eval().requires_grad_(True))
    return model, inputs


def randomise(model: nn.Module) -> None:
    """Nothing that is 0 or 1 everywhere, where mistakes would be invisible."""
    with torch.no_grad():
        for owner in model.modules():
            for key, t in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)):
                if key == "running_mean":
                    t.normal_(0, 0.1)
                elif key == "running_var" or (key == "weight" and t.ndim == 1):
                    t.uniform_(0.5, 1.5)
                elif isinstance(t, nn.Parameter) and t.numel() and bool(t.min() == t.max()):
                    t.normal_(0, 0.02 if t.ndim > 1 else 0.1)


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
DEPTH = {**VIT, "num_hidden_layers": 4, "neck_hidden_sizes": [16, 32, 64, 64], "backbone_out_indices": [0, 1, 2, 3]}
DEPTH |= {"reassemble_factors": [4, 2, 1, 0.5]}
QUERIES = {"use_pretrained_backbone": False, "use_timm_backbone": False, "backbone_config": None, "num_queries": 5, "d_model": 64}
QUERIES |= {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in (("layers", 1), ("ffn_dim", 64))}
QUERIES |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4}

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
    "dpt": ("DPTForSemanticSegmentation", DEPTH),
    "detr": ("DetrForObjectDetection", QUERIES),
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
    "qwen3": ("Qwen3ForSequenceClassification", {**TEXT, "head_dim": 16, "num_key_value_heads": 2, "pad_token_id": 0}),
    "gemma": ("GemmaForSequenceClassification", {**TEXT, "head_dim": 16, "num_key_value_heads": 1, "pad_token_id": 0}),
    "gemma3_text": (
        "Gemma3TextForSequenceClassification",
        {**TEXT, "head_dim": 16, "num_key_value_heads": 1, "query_pre_attn_scalar": 16, "sliding_window": 64, "pad_token_id": 0},
    ),
    "dinov3_vit": ("DINOv3ViTModel", VIT),
    "fnet": ("FNetForSequenceClassification", {**TEXT, **MARKS}),
    "wav2vec2": ("Wav2Vec2ForSequenceClassification", SOUND),
    "hubert": ("HubertForSequenceClassification", SOUND),
    "wav2vec2-conformer": ("Wav2Vec2ConformerForSequenceClassification", SOUND),
    "whisper": ("WhisperForAudioClassification", SPEECH),
    "audio-spectrogram-transformer": ("ASTForAudioClassification", SPECTRA),
}
FULL_SIZE = ("levit", "hiera")
OTHER_INPUTS: dict[str, Callable[[], tuple[Tensor, ...]]] = {
    "wav2vec2": lambda: (torch.randn(1, 4000),),
    "hubert": lambda: (torch.randn(1, 4000),),
    "wav2vec2-conformer": lambda: (torch.randn(1, 4000),),
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
ENCODERS += " tu-convnext_atto vgg11 se_resnext50_32x4d inceptionv4 timm-efficientnet-b0 timm-tf_efficientnet_lite0"


def segmentation(name: str) -> Network:
    library: Any = importlib.import_module("segmentation_models_pytorch")
    decoder, _, encoder = name.partition("/")
    encoder = encoder or ("tu-vit_tiny_patch16_224" if decoder == "DPT" else "resnet18")
    model = getattr(library, decoder)(encoder_name=encoder, encoder_weights=None, classes=3)
    return model, images(224 if decoder == "DPT" else 128)


PLAIN = "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5"
PLAIN += " mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5"
PLAIN += " squeezenet1_1 swin_t swin_v2_t vgg11_bn vit_b_32 wide_resnet50_2"
DENSE = "fcn_resnet50 fcn_resnet101 deeplabv3_resnet50 deeplabv3_resnet101 deeplabv3_mobilenet_v3_large"
DENSE += " lraspp_mobilenet_v3_large"
VIDEO = "r3d_18 mc3_18 r2plus1d_18 s3d mvit_v1_b swin3d_t"
DETECTION = "ssdlite320_mobilenet_v3_large retinanet_resnet50_fpn fasterrcnn_mobilenet_v3_large_320_fpn"


def torchvision(name: str) -> Network:
    models: Any = importlib.import_module("torchvision.models")
    options = {"weights_backbone": None} if name in (DENSE + " " + DETECTION).split() else {}
    options |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = models.get_model(name, weights=None, **options)
    if name in VIDEO.split():
        size = 224 if name in ("mvit_v1_b", "s3d") else 112
        return model, (torch.randn(1, 3, 16, size, size),)
    return model, images(320 if name in DETECTION.split() else 224 if name in ("vit_b_32", "maxvit_t") else 96)


SMALL = ["test", "atto", "femto", "zepto", "pico", "nano", "xxt", "xxs", "xx", "xt", "xs", "x", "tiny", "mini", "small", "t", "s"]
LARGE = ["base", "b", "medium", "m", "large", "l", "huge", "h", "giant", "g"]


def families() -> list[str]:
    """A small network of each family of timm."""
    library: Any = importlib.import_module("timm")
    found: dict[str, list[str]] = {}
    for name in library.list_models():
        found.setdefault(re.match(r"[a-z]+(?:(?<=v)\d+)?", name)[0], []).append(name)  # pyright: ignore[reportOptionalSubscript]
    return [min(names, key=size_of_name) for names in found.values()]


def size_of_name(name: str) -> tuple[int, list[int], str]:
    """How small a network is by the words in its name, then by its numbers; names without such a word are in between."""
    words = re.findall(r"_([a-z]+)", name)
    small = [SMALL.index(word) for word in words if word in SMALL] or [len(SMALL)]
    large = [len(SMALL) + 1 + LARGE.index(word) for word in words if word in LARGE]
    return max([min(small), *large]), [int(n) for n in re.findall(r"\d+", name)], name


def timm(name: str) -> Network:
    library: Any = importlib.import_module("timm")
    model = library.create_model(name, pretrained=False)
    channels, native, _ = model.default_cfg["input_size"]
    if not model.default_cfg.get("fixed_input_size"):
        with suppress(Exception), torch.no_grad():  # windows and positions may ask for the native size without saying so
            small = images(96, channels)
            model.eval()(*small)
            return model, small
    return model, images(native, channels)


def segmentation_names() -> list[str]:
    return [*DECODERS.split(), *(f"Unet/{e}" for e in ENCODERS.split()[1:])]


LIBRARIES: dict[str, tuple[Callable[[str], Network], Callable[[], list[str]], str]] = {
    "transformers": (transformers, lambda: list(TRANSFORMERS), "transformers"),
    "ultralytics": (ultralytics, lambda: YOLO, "ultralytics"),
    "segmentation_models_pytorch": (segmentation, segmentation_names, "segmentation-models-pytorch"),
    "torchvision": (torchvision, lambda: f"{PLAIN} {DENSE} {VIDEO} {DETECTION}".split(), "torchvision"),
    "timm": (timm, families, "timm"),
}
"""By the name of the module: how a network is built, which there are, and the package."""
