"""`compress verify`: the checks that the script in a package makes on a device, by the very same code, from outside of it."""

from __future__ import annotations

from pathlib import Path

from compress.errors import BadInput
from exporters.standalone import sealed
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

    Raises:
        BadInput: no package, or an archive that is not safe to open.
    """
    signers = None if allowed_signers is None else Path(allowed_signers)
    if identity is not None and signers is None:
        raise BadInput("--identity names a signer, and nobody says which key is theirs. Add --allowed-signers FILE.")
    try:
        return script.verify(Path(package), not hashes_only, rounds, threads, signers, identity, digest)
    except sealed.Refused as error:
        raise BadInput(str(error)) from error
