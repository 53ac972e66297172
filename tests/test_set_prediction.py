"""Detectors of transformers: what their decoders read is the part that becomes smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

import compress
from compress.detection import mean_precision, own_losses, set_prediction, wholes
from compress.detection.answered import answering
from compress.detection.coco import open_coco
from compress.detection.drawn import draw
from compress.errors import BadInput
from compress.report import records

transformers: Any = pytest.importorskip("transformers", reason="pip install transformers")
CLASSES = 3
SMALL = {
    "d_model": 32,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 20,
    "decoder_layers": 2,
    "num_labels": CLASSES,
}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
MAPS = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "layer_type": "basic"}


def detr() -> Any:
    backbone = transformers.ResNetConfig(**MAPS, out_features=["stage4"])
    made = {"use_timm_backbone": False, "use_pretrained_backbone": False, "encoder_layers": 1}
    return transformers.DetrForObjectDetection(transformers.DetrConfig(backbone_config=backbone, **made, **SMALL, **HEADS))


def rt_detr(version: str = "") -> Any:
    backbone = transformers.RTDetrResNetConfig(**MAPS, out_features=["stage2", "stage3", "stage4"])
    made = {
        "encoder_in_channels": [32, 48, 64],
        "encoder_hidden_dim": 32,
        "decoder_in_channels": [32, 32, 32],
        "num_denoising": 10,
    }
    config = getattr(transformers, f"RTDetr{version}Config")(backbone_config=backbone, **made, **SMALL, **HEADS)
    return getattr(transformers, f"RTDetr{version}ForObjectDetection")(config)


def fresh(kind: str) -> Any:
    """Random weights; no norm is near zero, where mistakes would be invisible."""
    torch.manual_seed(0)
    made = detr() if kind == "detr" else rt_detr(kind.removeprefix("rt-detr"))
    with torch.no_grad():
        for owner in made.modules():
            for name, t in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)):
                if name == "running_var" or (name == "weight" and t.ndim == 1):
                    t.uniform_(0.5, 1.5)
    return made.eval()


KINDS = pytest.mark.parametrize("kind", ["detr", "rt-detr", "rt-detrV2"])
IMAGE = torch.rand(3, 96, 64, generator=torch.Generator().manual_seed(0))


@KINDS
def test_the_whole_way_leaves_a_smaller_detector_its_file_and_a_report(tmp_path: Path, kind: str):
    pytest.importorskip("pycocotools")
    pytest.importorskip("scipy")
    parts = {name: open_coco(draw(tmp_path / name, count=4, size=64, seed=seed)) for seed, name in enumerate(("train", "test"))}
    detector = fresh(kind)
    settings = {"epochs": 1, "batch_size": 4, "rounds": 5, "calibration": 4, "method": "magnitude", "threads": 1}
    made = compress.detector(detector, parts, target="macs=0.7", out=tmp_path / "out", **settings)
    report, _ = records.read(tmp_path / "out")
    assert [row.stage for row in report.stages] == ["dense", "remove", "finetune"]
    assert report.result.macs < 0.71 * report.dense.macs and report.exactness is not None and report.exactness.holds
    assert report.exports[0].quality is not None and report.result.quality is not None
    assert report.exports[0].quality.value == pytest.approx(report.result.quality.value, abs=1e-3)
    again = torch.load(made.out / "detector.pt", weights_only=False)
    assert type(again) is type(detector) and not again.training
    with torch.no_grad():
        said, loaded = made.model(pixel_values=IMAGE[None]), again(pixel_values=IMAGE[None])
    assert torch.equal(said.pred_boxes, loaded.pred_boxes) and said.logits.isfinite().all()


@KINDS
def test_boxes_are_those_of_the_detectors_own_image_processor(kind: str):
    detector = fresh(kind)
    processor = (transformers.DetrImageProcessor if kind == "detr" else transformers.RTDetrImageProcessor)()
    with torch.no_grad():
        found = set_prediction.boxes(detector, IMAGE, [1, 5, 7])
        # As the processor makes pixels of a picture of the size that is wanted.
        seen = processor(images=IMAGE, return_tensors="pt", do_resize=False, do_rescale=False)["pixel_values"]
        assert torch.allclose(seen, set_prediction.pixels(detector, IMAGE[None]), atol=1e-5)
        said = detector(pixel_values=seen)
    own = processor.post_process_object_detection(said, threshold=0.0, target_sizes=[(96, 64)])[0]
    order, wanted = found["scores"].argsort(descending=True), own["scores"].argsort(descending=True)
    assert torch.allclose(found["scores"][order], own["scores"][wanted], atol=1e-5)
    assert torch.allclose(found["boxes"][order], own["boxes"][wanted], atol=1e-2)
    assert found["labels"][order].tolist() == [[1, 5, 7][label] for label in own["labels"][wanted].tolist()]


@KINDS
def test_a_detector_says_what_another_answers_in_its_parts_place(kind: str):
    detector = fresh(kind)
    whole = wholes.found(detector)
    assert whole is not None
    with torch.no_grad():
        own = set_prediction.boxes(detector, IMAGE, [1, 2, 3])

        def shifted(images: torch.Tensor) -> list[torch.Tensor]:
            return [value + torch.arange(value.shape[-1]) for value in tree_leaves(fresh_part(images))]

        fresh_part = wholes.found(fresh(kind)).part  # type: ignore[union-attr]
        with answering(detector, shifted) as can:
            other = set_prediction.boxes(detector, IMAGE, [1, 2, 3])
        again = set_prediction.boxes(detector, IMAGE, [1, 2, 3])
    assert can and not torch.equal(own["boxes"], other["boxes"]) and torch.equal(own["boxes"], again["boxes"])


def test_a_target_that_is_met_exactly_costs_less(tmp_path: Path):
    """Labels count from 0 in the order of the ids, and boxes are shares around their middle."""
    pytest.importorskip("scipy")
    detector = fresh("rt-detr").eval()
    with torch.no_grad():
        found = set_prediction.boxes(detector, IMAGE, [2, 5, 9])
    best = {name: value[:1] for name, value in found.items()}
    best["boxes"] = best["boxes"].clamp(min=0)
    far = {"boxes": torch.tensor([[0.0, 0, 1, 1]]), "labels": best["labels"]}
    with torch.no_grad():
        near, wide = (float(own_losses.loss_of(detector, [IMAGE], [target], [2, 5, 9])) for target in (best, far))
    assert near < wide


def test_data_with_more_categories_and_other_detectors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("compress.commands.detector.packages", lambda: None)
    data = open_coco(draw(tmp_path / "a", count=2, size=64))
    more = type(data)(data.records, {**data.categories, 8: "cat", 9: "dog"})
    with pytest.raises(BadInput, match=r"categories, the detector 3"):
        compress.detector(fresh("detr"), more, out=tmp_path / "out")
    config = transformers.YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[64, 64]
    )
    with pytest.raises(BadInput, match=r"YolosForObjectDetection is no detector of .* transformers \(DETR, RT-DETR\)"):
        compress.detector(transformers.YolosForObjectDetection(config), data, out=tmp_path / "out")
    with pytest.raises(BadInput, match="no detector of torchvision, ultralytics or transformers"):
        mean_precision.mean_precision(torch.nn.Linear(1, 1), data)
