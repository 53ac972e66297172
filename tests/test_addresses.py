"""Storage that is no file system: an address is told as one, and never taken for folders of such names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import compress
from compress.__main__ import main
from compress.commands.compare import compare
from compress.commands.diff import diff
from compress.commands.gate import gate
from compress.commands.report_page import report_page
from compress.commands.verify import verify
from compress.errors import BadInput
from compress.user import code

S3 = "s3://bucket/name"
NET = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.LazyLinear(10))
NET(torch.zeros(1, 1, 8, 8))
PLACES: dict[str, Callable[[], object]] = {
    "out": lambda: compress.run(NET, data="digits", out=S3),
    "model": lambda: compress.run(S3, data="digits"),
    "data": lambda: compress.run(NET, data=S3),
    "shards": lambda: compress.run(NET, data=f"{S3}-{{0..3}}.tar"),
    "plan": lambda: compress.run(NET, data="digits", plan=f"{S3}.json"),
    "report": lambda: report_page(S3),
    "compare": lambda: compare(S3, "other"),
    "diff": lambda: diff(S3, "other"),
    "gate": lambda: gate(S3, max_drop=1),
    "verify": lambda: verify(S3),
}


@pytest.fixture(autouse=True)
def nothing_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", PLACES)
def test_an_address_is_refused_as_one_and_makes_no_folder(place: str):
    with pytest.raises(BadInput, match=r"s3://bucket/name[^ ]* is an address; needed is a path on this machine"):
        PLACES[place]()


@pytest.mark.parametrize("place", ["gate", "report"])
def test_it_is_told_once(place: str):
    with pytest.raises(BadInput, match=r"^s3://bucket/name is an address"):
        PLACES[place]()


def test_of_an_address_of_a_file_the_path_is_told():
    with pytest.raises(BadInput, match=r"^file:///tmp/model.pt is an address.*: write /tmp/model.pt\."):
        compress.run("file:///tmp/model.pt", data="digits")


def test_code_is_not_looked_for_at_an_address():
    with pytest.raises(BadInput, match=r"^file:///nets.py is an address"):
        code.function("file:///nets.py:net", "--arch")


def test_an_empty_name_is_no_folder():
    with pytest.raises(BadInput, match="out is empty; needed is the name of a folder"):
        compress.run(NET, data="digits", out="")


def test_a_cache_at_an_address_ends_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COMPRESS_CACHE", S3)
    monkeypatch.setattr("sys.argv", ["compress", "methods"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"Error: The cache folder (COMPRESS_CACHE): {S3} is an address" in capsys.readouterr().err


def test_a_folder_of_such_a_name_is_somebodys_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "s3:").mkdir()
    with pytest.raises(BadInput, match="There is no model file"):
        compress.run("s3:/model.pt", data="digits")
    (tmp_path / "s3:").rmdir()
