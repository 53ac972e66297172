"""Detectors: what of them computes tensors from tensors, data in COCO's format, and mean average precision."""
