"""`compress verify`: the checks that the script in a package makes on a device, by the very same code, from outside of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compress.errors import BadInput, GateFailed
from compress.remote.ssh import device, on_device
from compress.user import files
from exporters.standalone import checksums
from exporters.standalone import verify as script
from exporters.standalone.verify import Verified


def verify(
    package: str | Path,
    *,
    hashes_only: bool = False,
    rounds: int = 50,
    threads: int = 0,
    allowed_signers: str | Path | None = None,
    identity: str | None = None,
    digest: str | None = None,
    target: str = "local",
    python: str = "python3",
    ssh_config: str | Path | None = None,
) -> Verified:
    """Check a package: hashes, then outputs beside the expected ones, then time. Needs numpy and onnxruntime, no torch.

    Args:
        package: package.tar.gz, or the folder that it was unpacked into.
        hashes_only: run nothing.
        rounds: rounds of timing; 0 for none.
        threads: of the runtime; 0 leaves that to it.
        allowed_signers: one of these must have signed it; a file as `ssh-keygen -Y verify` reads it.
        identity: the one of them that must have.
        digest: what `compress package` called the digest must be this.
        target: "local", or ssh://user@host:port: hashes and signature are checked here, then the package is copied there, outputs
            and time are checked by that device's own Python, and everything is removed again.
        python: the device's Python.
        ssh_config: the file that ssh reads instead of ~/.ssh/config.

    Raises:
        GateFailed: a damaged archive.
        BadInput: no package, an archive that is not safe to open, or a device that is not reached, or has no room or Python.
    """
    files.here(package)
    signers = None if allowed_signers is None else Path(allowed_signers)
    if identity is not None and signers is None:
        raise BadInput("--identity names a signer, and nobody says which key is theirs. Add --allowed-signers FILE.")
    there = None if target == "local" else device(target, config=None if ssh_config is None else Path(ssh_config))
    here = there is None and not hashes_only
    try:
        found = script.verify(Path(package), here, rounds, threads, signers, identity, digest)
    except checksums.Refused as error:
        raise (GateFailed if isinstance(error, checksums.Damaged) else BadInput)(str(error)) from error
    if there is None or hashes_only or not found.passed:
        return found
    options = ("--rounds", str(rounds), "--threads", str(threads), "--digest", found.digest)
    return replace(on_device(there, Path(package), options, python=python), signer=found.signer)
