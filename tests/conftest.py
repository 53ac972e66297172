"""One thread for everything: the models here are so small that threads cost more than they give, above all on a busy machine.

Laws are tried on the same examples every time, and take what time they need: a test that fails is one that fails again.
"""

from __future__ import annotations

import os

from hypothesis import settings

from exporters.no_telemetry import switch_off

switch_off()  # tests import onnxruntime themselves
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")
