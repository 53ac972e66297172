"""The other side of `exporters.isolated`: reads the request in a folder, exports, writes the answer there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from exporters import elsewhere

elsewhere.install()  # before torch

import torch  # noqa: E402

import exporters  # noqa: E402
from exporters import atomic, isolated  # noqa: E402
from exporters.errors import ExportError  # noqa: E402


def main(folder: Path) -> None:
    """Carry out one request."""
    # Our parent wrote this file a moment ago, in a folder that only this user may read: it is no stranger's pickle.
    request = torch.load(folder / "request.pt", weights_only=False)
    try:
        exported = exporters.export(
            request["format"],
            request["model"],
            request["inputs"],
            request["path"],
            metadata=request["metadata"],
            samples=request["samples"],
            **request["options"],
        )
        answer = isolated.record(exported)
    except ExportError as error:
        answer = {"error": isolated.told(error)}
    atomic.write(folder / "answer.json", json.dumps(answer).encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
