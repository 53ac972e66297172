"""Libraries that report to their makers are told not to, before they are imported.

ONNX Runtime reads its switch while its library is loaded; `disable_telemetry_events()` afterwards comes too late: by then events
are queued below the user's cache folder and a host is looked up. Processes that are started from here inherit the switches.
"""

from __future__ import annotations

import os
import sys

SWITCHES = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime
    "NNCF_CI": "1",  # NNCF has no other switch; nothing but its telemetry reads it
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, which timm imports
}


def switch_off() -> None:
    """For this process and those that it starts; who has set a switch on purpose keeps it."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    # OpenVINO has a switch only in a file of the user's; without this package it takes a stub of its own.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
