"""A package on another machine: a real sshd on loopback, with keys of its own, started by whoever runs the tests."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from runs import made_run
from test_leftovers import processes, until
from torch import nn

import compress
from compress.cli.main import cli
from compress.errors import BadInput
from compress.measure.interleaved import Figures
from compress.pipeline import latency_cache
from compress.remote import ssh

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
needs_sshd = pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="there is no sshd or no ssh here")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = made_run(tmp_path_factory.mktemp("run"))
    return compress.package(run, out=run / "package.tar.gz").path


@dataclass(frozen=True)
class Host:
    """A running sshd."""

    target: str
    config: Path
    folder: Path
    tmp: Path

    def write(self, **options: str) -> Path:
        """Another client configuration."""
        path = self.folder / "other_config"
        settings = {"IdentityFile": f"{self.folder}/client", "UserKnownHostsFile": f"{self.folder}/known_hosts", **options}
        path.write_text("Host *\n" + "".join(f"  {k} {v}\n" for k, v in settings.items()) + "  IdentitiesOnly yes\n")
        return path


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("sshd")
    (folder / "tmp").mkdir()
    for name in ("client", "server", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "authorized").write_text((folder / "client.pub").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "server",
        "AuthorizedKeysFile": folder / "authorized",
        "PidFile": folder / "pid",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "SetEnv": f"TMPDIR={folder / 'tmp'}",
    }
    (folder / "sshd_config").write_text("".join(f"{k} {v}\n" for k, v in settings.items()))
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd of root locks itself in
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([str(SSHD), "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    public = (folder / "server.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(public)}\n")
    made = Host(f"ssh://127.0.0.1:{port}", folder / "config", folder, folder / "tmp")
    made.write().replace(made.config)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        if server.poll() is not None:
            pytest.skip(f"sshd does not start here: {(folder / 'log').read_text().strip()}")
        yield made
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
def there(host: Host) -> ssh.Device:
    return ssh.device(host.target, config=host.config, timeout=30)


@pytest.mark.parametrize("words", ["'", '"a', "\\"])
def test_a_command_without_an_end_is_told(words: str):
    with pytest.raises(BadInput, match="needed is a command such as venv/bin/python"):
        ssh._words(words)


@pytest.mark.parametrize("target", ["ssh://h\n-oX", "ssh://h\t", "ssh://h:0", "ssh://h\u202e", " ssh://h", "ssh://-oX"])
def test_an_address_is_taken_as_it_stands_or_not_at_all(target: str):
    with pytest.raises(BadInput, match="needed is local or ssh://user@host:port"):
        ssh.device(target)


def python(path: Path, version: str, importable: bool = True) -> str:
    """A Python that claims a version, or lacks onnxruntime."""
    hidden = "" if importable else "import sys; sys.modules['onnxruntime'] = None; "
    start = f"{hidden}import runpy, sys; sys.path.insert(0, '.'); del sys.argv[0]; runpy.run_path(sys.argv[0], {{}}, '__main__')"
    path.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then echo {version}; else exec {sys.executable} -c "{start}" "$@"; fi\n')
    path.chmod(0o755)
    return str(path)


@needs_sshd
def test_a_package_is_checked_and_timed_there_and_leaves_nothing_behind(host: Host, packed: Path):
    found = compress.verify(packed, rounds=10, threads=1, target=host.target, ssh_config=host.config, python=sys.executable)
    (model,) = found.models
    assert found.passed and model.status == "equal" and model.p50_ms and model.p50_ms > 0 and 10 <= model.rounds <= 20
    assert found.package == str(packed) and found.environment["python"].startswith("3.")
    assert list(host.tmp.iterdir()) == []


@needs_sshd
def test_the_command_says_what_the_device_found(host: Host, packed: Path):
    flags = ["--target", host.target, "--ssh-config", str(host.config), "--python", sys.executable, "--rounds", "0"]
    result = CliRunner().invoke(cli, ["verify", str(packed), *flags])
    assert result.exit_code == 0 and "equal" in result.stdout and "Passed." in result.stdout, result.output


@needs_sshd
def test_a_device_without_a_runtime_is_told(host: Host, packed: Path, tmp_path: Path):
    name = python(tmp_path / "python", "3.9", importable=False)
    found = compress.verify(packed, target=host.target, ssh_config=host.config, python=name)
    assert found.exit_code == 4 and found.models[0].status == "cannot run" and "onnxruntime" in found.models[0].detail
    assert not found.problems and list(host.tmp.iterdir()) == []


@needs_sshd
def test_an_old_python_or_none_is_refused(there: ssh.Device, packed: Path, tmp_path: Path, host: Host):
    with pytest.raises(BadInput, match=r"Python 3\.6, needed is 3\.8"):
        ssh.on_device(there, packed, python=python(tmp_path / "old", "3.6"))
    with pytest.raises(BadInput, match="no Python that starts"):
        ssh.on_device(there, packed, python="python-of-nowhere")
    assert list(host.tmp.iterdir()) == []


@needs_sshd
def test_a_host_key_that_is_unknown_or_another_is_refused(host: Host, packed: Path):
    stranger = (host.folder / "stranger.pub").read_text().split()[:2]
    name = host.target.removeprefix("ssh://").split(":")
    (host.folder / "wrong").write_text(f"[{name[0]}]:{name[1]} {' '.join(stranger)}\n")
    (host.folder / "none").write_text("")
    for known in ("wrong", "none"):
        config = host.write(UserKnownHostsFile=str(host.folder / known), StrictHostKeyChecking="no")
        with pytest.raises(BadInput, match="host key"):
            compress.verify(packed, target=host.target, ssh_config=config)
    assert (host.folder / "none").read_text() == "", "an unknown key is never learned"


@needs_sshd
def test_a_key_that_is_not_accepted_is_told(host: Host, packed: Path):
    config = host.write(IdentityFile=str(host.folder / "stranger"))
    with pytest.raises(BadInput, match="accepts no key"):
        compress.verify(packed, target=host.target, ssh_config=config)


@needs_sshd
def test_an_unreachable_device_is_told(host: Host, packed: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(BadInput, match=r"cannot be reached \(.*refused"):
        compress.verify(packed, target=f"ssh://127.0.0.1:{port}", ssh_config=host.config)


@needs_sshd
def test_a_device_that_never_answers_is_given_up(host: Host, packed: Path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        there = ssh.device(f"ssh://127.0.0.1:{silent.getsockname()[1]}", config=host.config, timeout=1)
        with pytest.raises(BadInput, match=r"cannot be reached|did not answer"):
            ssh.on_device(there, packed)


@needs_sshd
def test_a_full_disk_is_told_before_and_while_copying(
    there: ssh.Device, host: Host, packed: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(ssh, "PREPARE", ssh.PREPARE.replace(ssh.PREPARE.splitlines()[3], f'echo "{ssh.MARK}free=12"'))
        with pytest.raises(BadInput, match="12 KiB free"):
            ssh.on_device(there, packed, python=sys.executable)
    with pytest.raises(BadInput, match=r"cannot be copied .*No space left"):
        ssh.copy(there, packed, "/dev/full", 30)
    assert list(host.tmp.iterdir()) == []


@needs_sshd
def test_a_tampered_package_never_leaves_this_machine(host: Host, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = bytearray(packed.read_bytes())
    content[content.index(b'"edits"') + 1] ^= 1  # in plan.json
    (tmp_path / "p.tar.gz").write_bytes(content)
    monkeypatch.setattr(ssh, "call", lambda *_, **__: pytest.fail("nothing may be sent"))
    result = CliRunner().invoke(
        cli, ["verify", str(tmp_path / "p.tar.gz"), "--target", host.target, "--ssh-config", str(host.config)]
    )
    assert result.exit_code in (2, 5), result.output  # the checksum of gzip finds it too


@needs_sshd
def test_models_are_timed_there_in_turns_and_leave_nothing_behind(host: Host, packed: Path, monkeypatch: pytest.MonkeyPatch):
    copied: list[str] = []
    copy = ssh.copy
    monkeypatch.setattr(ssh, "copy", lambda there, source, *rest: (copied.append(source.name), copy(there, source, *rest)))
    file = packed.with_name("model.onnx")
    where = {"target": host.target, "ssh_config": host.config, "python": sys.executable}
    found = compress.bench(file, packed, file.with_name("model.pte"), batch="1,2", threads=1, rounds=5, cpu="0", **where)
    timed = [f for f in found.values() if f.reason is None]
    assert [(f.batch, f.model) for f in timed] == [(1, str(file)), (1, str(packed)), (2, str(file)), (2, str(packed))]
    assert timed[0].ratio == timed[2].ratio == 1, "each batch size has a first of its own"
    for f in timed:
        assert f.p50_ms and f.p90_ms and f.peak_bytes and f.load_ms and f.samples >= 5 and f.threads == 1 and f.version
        assert f.device and f.runtime == "ort" and f.verdict in ("faster", "slower", "cannot tell")
    gaps = [f.reason for f in found.values() if f.reason is not None]
    assert len(gaps) == 2 and "no file that ort runs" in gaps[0]
    assert len(copied) == len(set(copied)) + 1 and copied.count("model.onnx") == 2, "the file and that of the package, once each"
    assert list(host.tmp.iterdir()) == []


@needs_sshd
def test_the_command_prints_the_table_of_a_device(host: Host, packed: Path):
    flags = ["--target", host.target, "--ssh-config", str(host.config), "--python", sys.executable, "--rounds", "5"]
    result = CliRunner().invoke(cli, ["bench", str(packed), *flags, "--json"])
    (row,) = json.loads(result.stdout).values()
    assert result.exit_code == 0 and row["p50_ms"] > 0 and row["device"], result.output
    result = CliRunner().invoke(cli, ["bench", str(packed), *flags])
    assert result.exit_code == 0 and "p50 ms" in result.stdout and "device" in result.stdout, result.output


@needs_sshd
def test_a_device_that_cannot_time_says_why(host: Host, packed: Path, tmp_path: Path):
    where = {"target": host.target, "ssh_config": host.config}
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "onnxruntime.py").write_text("raise ImportError('No module named onnxruntime')")
    with pytest.raises(BadInput, match=r"Nothing could be timed.*onnxruntime"):
        compress.bench(packed, rounds=5, **where, python=f"env PYTHONPATH={tmp_path / 'without'} {sys.executable}")
    with pytest.raises(BadInput, match=r"Python 3\.6, needed is 3\.8"):
        compress.bench(packed, **where, python=python(tmp_path / "old", "3.6"))
    with pytest.raises(BadInput, match="ONNX Runtime alone"):
        compress.bench(packed, runtime="openvino", **where)
    assert list(host.tmp.iterdir()) == []


def test_a_package_that_was_changed_is_not_timed(packed: Path, tmp_path: Path):
    with tarfile.open(packed) as tar:
        tar.extractall(tmp_path / "in", filter="data")
    (tmp_path / "in" / "README.txt").write_text("x")
    with tarfile.open(tmp_path / "p.tar.gz", "w:gz") as tar:
        for file in sorted((tmp_path / "in").rglob("*")):
            if file.is_file():
                tar.add(file, file.relative_to(tmp_path / "in").as_posix())
    with pytest.raises(BadInput, match=r"does not match its checksums: README\.txt was changed"):
        compress.bench(tmp_path / "p.tar.gz")
    with pytest.raises(BadInput, match="cannot be opened"):
        compress.bench(tmp_path / "none.tar.gz")


FAKE_SSH = """#!{python}
# A connection without a network: the last word runs in a process of its own, and sees our end as a closed pipe, as from sshd.
import subprocess, sys, threading
there = subprocess.Popen(["sh", "-c", sys.argv[-1]], stdin=subprocess.PIPE, start_new_session=True)
def carry():
    while chunk := sys.stdin.buffer.read1(65536):
        there.stdin.write(chunk)
        there.stdin.flush()
    there.stdin.close()
threading.Thread(target=carry, daemon=True).start()
sys.exit(there.wait())
"""


@pytest.fixture
def device_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of a device that a stand-in for ssh reaches: this machine."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "tmp").mkdir()
    (tmp_path / "bin" / "ssh").write_text(FAKE_SSH.replace("{python}", sys.executable))
    (tmp_path / "bin" / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def test_a_device_is_left_as_it_was(device_tmp: Path, packed: Path):
    found = compress.verify(packed, rounds=5, threads=1, target="ssh://device", python=sys.executable)
    assert found.passed and list(device_tmp.glob("compress-????????")) == []
    (figures,) = compress.bench(packed, rounds=5, threads=1, target="ssh://device", python=sys.executable).values()
    assert figures.p50_ms is not None and list(device_tmp.glob("compress-????????")) == []


def test_a_device_is_left_as_it_was_by_a_command_that_is_killed(device_tmp: Path, packed: Path):
    sleeping = device_tmp.parent / "python"
    sleeping.write_text('#!/bin/sh\nif [ "$1" = -c ]; then echo 3.9; else exec sleep 61.25; fi\n')
    sleeping.chmod(0o755)
    words = ["verify", str(packed), "--target", "ssh://device", "--python", str(sleeping)]
    running = subprocess.Popen([sys.executable, "-m", "compress", *words], stderr=subprocess.DEVNULL)
    until(lambda: [file for file in device_tmp.glob("compress-????????/pid") if file.read_text()])
    until(lambda: processes("61.25"))  # its number is written before the shell becomes it
    running.kill()
    running.wait()
    until(lambda: not list(device_tmp.glob("compress-????????")) and not processes("61.25"), 10)
    until(lambda: not processes(str(device_tmp.parent / "bin" / "ssh")), 10)  # it ends after what it started


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a device that is made up."""
    monkeypatch.setattr(ssh, "guard", lambda *_: contextlib.nullcontext())


def answering(stdout: str) -> Callable[..., ssh.Done]:
    def call(there: ssh.Device, command: str, *, given: bytes = b"", limit: float) -> ssh.Done:
        if command == "exec sh -s":
            facts = {"folder": "/tmp/compress-abcdefgh", "free": "99999999", "python": "3.9"}
            return ssh.Done(0, "welcome\n" + "".join(f"{ssh.MARK}{k}={v}\n" for k, v in facts.items()), "")
        return ssh.Done(0, stdout, "")

    return call


@pytest.mark.parametrize(
    "told",
    ["", "rubbish", "[]", "{}", '{"models": 1, "problems": []}', '{"error": 1}', '{"models": [{"path": "x"}], "problems": []}'],
)
@pytest.mark.usefixtures("unguarded")
def test_a_device_that_answers_nonsense_is_told(packed: Path, told: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ssh, "call", answering(f"login message\n{ssh.MARK}answer\n{told}"))
    with pytest.raises(BadInput, match="no answer that can be read"):
        ssh.on_device(ssh.Device("nowhere"), packed)


GOOD = {
    "loaded": {"load_s": 1, "first_s": 1, "version": "1", "threads": 1}, "rounds": [[1.0]] * 5, "joules": [None] * 5,
    "calm": 1.0, "wall_s": 1.0, "processor_s": 5.0, "calls": 1, "peak_bytes": 1, "failed": None,
}  # fmt: skip
STILL = {"mhz": None, "celsius": None}


def seconds(**changed: object) -> str:
    return json.dumps({"models": [GOOD | changed], "before": STILL, "after": STILL, "environment": {"cpu": "c"}})


@pytest.mark.parametrize(
    "told",
    [
        "",
        "[]",
        "{}",
        seconds(rounds=[["1"]]),
        seconds(rounds=[]),
        seconds(rounds=3),
        seconds(loaded={}),
        seconds(processor_s="5"),
        seconds(calm="5"),
        seconds(extra=1),
        seconds().replace('"models": [', '"models": [1, '),
        seconds().replace('"mhz": null', '"mhz": "x"'),
    ],
)
@pytest.mark.usefixtures("unguarded")
def test_seconds_that_are_none_are_told(packed: Path, told: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ssh, "call", answering(f"login message\n{ssh.MARK}answer\n{told}"))
    with pytest.raises(BadInput, match=r"no answer that can be read .*bench\.py there"):
        compress.bench(packed, target="ssh://nowhere")
    monkeypatch.setattr(ssh, "call", answering(f"login message\n{ssh.MARK}answer\n{seconds()}"))
    (figures,) = compress.bench(packed, target="ssh://nowhere").values()
    assert figures.p50_ms == 1000 and figures.device == "c"


@pytest.mark.parametrize(
    "folder", ["", "/", "/tmp", "/tmp/compress-ab cdefg", "/tmp/x; rm -rf /compress-abcdefgh", "/../compress-abcdefg"]
)
def test_only_a_folder_that_mktemp_made_is_used(packed: Path, folder: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ssh, "call", lambda *_, **__: ssh.Done(0, f"{ssh.MARK}folder={folder}\n", "no room"))
    with pytest.raises(BadInput, match=r"no temporary folder \(no room\)"):
        ssh.on_device(ssh.Device("nowhere"), packed)


@pytest.mark.parametrize(
    "target",
    [
        "device",
        "http://x",
        "ssh://",
        "ssh://u:password@x",
        "ssh://x/path",
        "ssh://-oProxyCommand=x",
        "ssh://-x@y",
        "ssh://x:99999",
        "ssh://a b",
        "ssh://x?y",
    ],
)
def test_a_target_that_is_none_is_refused(target: str):
    with pytest.raises(BadInput, match="The target is"):
        ssh.device(target)


def test_ssh_asks_nothing_and_trusts_nobody_new():
    words = ssh.device("ssh://me@box:2222", timeout=7).command("true")
    assert words[-3:] == ["--", "box", "true"] and words[words.index("-l") + 1] == "me" and words[words.index("-p") + 1] == "2222"
    assert {"BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=7", "ForwardAgent=no"} <= set(words)


@pytest.fixture
def found_by_ssh(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device, as ssh finds it without being told which configuration to read."""
    real = shutil.which("ssh")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {real} -F {host.config} "$@"\n')
    (tmp_path / "bin" / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    return host.target


QUICK = {"data": "digits", "epochs": 0, "depth": 0, "rounds": 5, "device": "cpu", "method": "magnitude", "allow_doubtful": True}


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10)).eval()


@needs_sshd
def test_a_run_is_timed_on_the_device(found_by_ssh: str, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(latency_cache, "compare", lambda *_, **__: pytest.fail("timed here"))
    asked = {"target": "macs=0.5", "on": found_by_ssh, "on_python": sys.executable}
    report = compress.run(net(), out=tmp_path / "out", **asked, **QUICK).report
    assert report.dense.latency is not None and report.dense.latency.ratio == 1 and report.dense.latency.p50_ms > 0
    assert report.result.latency is not None and report.result.latency.ratio != 1
    assert any(f"Latency is that of {found_by_ssh}, in its ONNX Runtime" in note for note in report.notes)
    assert list(host.tmp.iterdir()) == []


@needs_sshd
def test_a_target_in_time_is_that_of_the_device(found_by_ssh: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    timed: list[str] = []

    def pretended(shop: ssh.Workshop, candidates: Any, **_: Any) -> list[Figures]:
        timed.append(shop.there.name)
        sizes = [path.stat().st_size for path in (candidates[0].path, candidates[1].path)]
        ratio = sizes[0] / sizes[1]
        both = [Figures("", "ort", 1, 0, 10.0), Figures("", "ort", 1, 0, 10 / ratio, ratio, (ratio, ratio), 5)]
        return [dataclasses.replace(one, calm=1.0) for one in both]

    monkeypatch.setattr(latency_cache, "race_there", pretended)
    asked = {"target": "latency=0.5", "align": 1, "on": found_by_ssh, "on_python": sys.executable}
    report = compress.run(net(), out=tmp_path / "out", **asked, **QUICK).report
    assert timed and set(timed) == {found_by_ssh.removeprefix("ssh://")}
    assert report.result.latency is not None and 1 / report.result.latency.ratio == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"on": "device"}, "needed is local or ssh://user@host:port"),
        ({"on": "ssh://host", "runtime": "torch"}, "does not go with on="),
    ],
)
def test_a_device_that_cannot_be_timed_is_refused(tmp_path: Path, settings: dict[str, str], says: str):
    with pytest.raises(BadInput, match=says):
        compress.run(net(), out=tmp_path / "out", **settings, **QUICK)


@needs_sshd
def test_a_device_that_is_not_reached_ends_the_run_before_anything_slow(tmp_path: Path):
    with pytest.raises(BadInput, match=r"nobody\.invalid"):
        compress.run(net(), out=tmp_path / "out", on="ssh://nobody.invalid", **QUICK)


def test_a_recipe_of_somebody_else_reaches_no_device_and_runs_nothing_there(tmp_path: Path):
    for line in ('on = "ssh://host"', 'on_python = "rm -rf /"'):
        (tmp_path / "recipe.toml").write_text(f'model = "a.pt"\ndata = "digits"\n{line}\n')
        with pytest.raises(BadInput, match="names code"):
            compress.run(recipe=tmp_path / "recipe.toml", out=tmp_path / "out")
