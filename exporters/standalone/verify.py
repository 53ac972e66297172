"""Is this package whole, does it compute here what it computed where it was made, and how fast?

    python verify.py                        the unpacked package that this script lies in
    python verify.py package.tar.gz         an archive
    python verify.py --json                 for a program

Hashes first, then the outputs for the samples in the package against the expected ones, then time. Needs Python 3.8 or newer and,
beyond hashes, numpy and onnxruntime. Exit codes: 0 all is well, 2 no package, 4 no runtime here for it, 5 something is wrong.
"""

from __future__ import annotations

import sys

sys.dont_write_bytecode = True  # a package holds what it lists, and nothing else

import argparse
import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __package__:
    from exporters.standalone import checksums, contents, inference, leftovers, machine
else:
    try:
        import checksums  # type: ignore[no-redef,import-not-found]
        import contents  # type: ignore[no-redef,import-not-found]
        import inference  # type: ignore[no-redef,import-not-found]
        import leftovers  # type: ignore[no-redef,import-not-found]
        import machine  # type: ignore[no-redef,import-not-found]
    except (ImportError, SyntaxError) as lost:  # on the way here
        print(f"The scripts of this package are not whole ({lost}). Copy the package again.", file=sys.stderr)
        sys.exit(5)

BUDGET_S, SAMPLE_S, LEAST_ROUNDS = 10.0, 0.005, 10
"""A model is timed for at most that long; a round repeats its call until it lasts some milliseconds."""
MOST_INPUT = 1 << 30  # bytes of a batch


@dataclasses.dataclass(frozen=True)
class Ran:
    """One model of the package, as it ran here.

    Attributes:
        status: "equal", "differs", "cannot run" or "not asked".
        detail: what differs, or why it did not run.
        worst_abs: largest difference to the expected outputs, and what that output was allowed.
        p50_ms, p90_ms: of one call on `batch` samples; None where it was not timed.
    """

    path: str
    format: str
    status: str
    detail: str = ""
    worst_abs: float | None = None
    tolerance: float | None = None
    batch: int | None = None
    rounds: int | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None


@dataclasses.dataclass(frozen=True)
class Verified:
    """What was found.

    Attributes:
        digest: sha256 of the list of hashes; names the whole package in one line.
        problems: files that do not match their checksums, a signature that does not hold.
        signer: who signed; None where nobody asked.
        expected: the latency that was measured where the package was made, and on what.
    """

    package: str
    passed: bool
    exit_code: int
    digest: str
    problems: tuple[str, ...]
    signer: str | None
    models: tuple[Ran, ...]
    expected: dict[str, Any] | None
    environment: dict[str, Any]


def verify(
    package: Path,
    run: bool = True,
    rounds: int = 50,
    threads: int = 0,
    allowed_signers: Path | None = None,
    identity: str | None = None,
    digest: str | None = None,
) -> Verified:
    """Check an archive or an unpacked package.

    Args:
        package: package.tar.gz, or the folder that it was unpacked into.
        run: compare outputs and time them too; False stops behind the hashes.
        rounds: rounds of timing; 0 does not time.
        threads: of the runtime; 0 leaves that to it.
        allowed_signers: the package must be signed by one of these.
        identity: and by this one of them.
        digest: the package must have this digest.

    Raises:
        checksums.Refused: no package, one that is not safe to open, or many times more threads than there are cores.
    """
    if run and not 0 <= threads <= machine.MOST_OF_A_CORE * machine.cores():
        raise checksums.Refused(f"--threads is {threads}, and there are {machine.cores()} cores. Give as many, or 0.")
    with opened(package) as folder:
        problems = checksums.problems(folder)
        found = checksums.sha256(folder / checksums.SUMS)
        # Case is free in hexadecimal.
        if digest is not None and digest.lower() != found:
            problems.append(f"the digest is {found}, not {digest}")
        signer = None
        if allowed_signers is not None:
            signer = checksums.signature(folder, allowed_signers, identity)
            if not signer:
                problems.append(f"it is not signed by {identity or 'an allowed signer'}")
        # A manifest whose hash does not match must not even be read.
        manifest = {} if problems else contents.read(folder)
        models = tuple(checked(folder, manifest, model, run, rounds, threads) for model in manifest.get("models", ()))
    wrong = bool(problems) or any(model.status == "differs" for model in models)
    # Nothing ran and nothing was wrong: that is no proof, and has an exit code of its own.
    idle = run and not problems and not any(model.status == "equal" for model in models)
    exit_code = 5 if wrong else 4 if idle else 0
    told = tuple(problems), signer, models, manifest.get("latency"), machine.environment()
    return Verified(str(package), not exit_code, exit_code, found, *told)


@contextlib.contextmanager
def opened(package: Path) -> Iterator[Path]:
    """The folder of a package; an archive is unpacked into one that goes away again."""
    if package.is_dir():
        yield package
        return
    if not package.is_file():
        raise checksums.Refused(f"There is no package {package}. Give a package.tar.gz, or the folder that it was unpacked into.")
    with leftovers.folder() as folder:
        checksums.unpack(package, folder)
        yield folder


def checked(folder: Path, manifest: dict[str, Any], model: dict[str, Any], run: bool, rounds: int, threads: int) -> Ran:
    """One model: outputs against expected, then time."""
    place = model["path"], model["format"]
    if not run:
        return Ran(*place, status="not asked")
    if model["runtime"] != "onnxruntime":
        return Ran(*place, status="cannot run", detail=f"this script has no runner for {model['runtime']}")
    try:
        opened = inference.session(folder / model["path"], threads)
    except ImportError as error:
        return Ran(*place, status="cannot run", detail=f"{error}: pip install onnxruntime numpy")
    except Exception as error:  # a runtime's own kinds
        return Ran(*place, status="differs", detail=f"onnxruntime does not open it: {str(error).splitlines()[0]}")
    try:
        with inference.bounded(opened) as call:
            status, detail, worst, tolerance = compared(folder, model["samples"], call)
    except checksums.Refused:
        raise
    except Exception as error:  # a runtime's own kinds
        return Ran(*place, status="differs", detail=f"onnxruntime cannot run it on the samples: {str(error).splitlines()[0]}")
    # A known weakness of processors, told so that nobody looks for a broken file.
    if status == "differs" and "int8" in model["format"] and saturates():
        detail += "; 8-bit products saturate on this processor (AVX2 without VNNI), so take a float model here"
    ran = Ran(*place, status=status, detail=detail, worst_abs=worst, tolerance=tolerance)
    if status != "equal" or not rounds:
        return ran
    batch = manifest["latency"]["batch"] if manifest["latency"] else 1
    size = sum(load(folder, name).nbytes for name in model["samples"][0]["inputs"])
    if batch * size > MOST_INPUT:
        told = f"not timed: a batch of {batch} takes {batch * size / 1e9:.1f} GB"
        return dataclasses.replace(ran, detail=told)
    times = timed(folder, model["samples"], opened, batch, rounds)
    percentiles = [1e3 * times[min(len(times) - 1, int(share * len(times)))] for share in (0.5, 0.9)]
    return dataclasses.replace(ran, batch=batch, rounds=len(times), p50_ms=percentiles[0], p90_ms=percentiles[1])


def saturates(processor: Path = Path("/proc/cpuinfo")) -> bool:
    """Sums of two products of 8 bits do not fit into the 16 bits that x86 has for them, unless it has VNNI."""
    with contextlib.suppress(OSError):
        words = set(processor.read_text().split())
        return "avx2" in words and not words & {"avx512_vnni", "avx_vnni"}
    return False


def compared(folder: Path, samples: list[dict[str, Any]], call: Any) -> tuple[str, str, float | None, float | None]:
    """(status, detail, worst difference, what it was allowed) over all samples and outputs."""
    import numpy

    worst, allowed = 0.0, 0.0
    for number, sample in enumerate(samples):
        found = call([load(folder, name) for name in sample["inputs"]])
        if len(found) != len(sample["outputs"]):
            return "differs", f"sample {number}: {len(found)} outputs instead of {len(sample['outputs'])}", None, None
        for name, y, tolerance in zip(sample["outputs"], found, sample["tolerance"]):
            expected, y = load(folder, name).astype("float64"), numpy.asarray(y, dtype="float64")
            if y.shape != expected.shape:
                return "differs", f"sample {number}: shape {y.shape} instead of {expected.shape}", None, None
            difference = float(numpy.max(numpy.abs(y - expected))) if y.size else 0.0
            if not difference <= tolerance:  # NaN is not
                told = f"sample {number} differs by {difference:.3g}, allowed is {tolerance:.3g}"
                return "differs", told, difference if difference == difference else None, tolerance
            # The worst by its own tolerance, compared without a division by 0.
            if allowed == 0.0 or difference * allowed > worst * tolerance:
                worst, allowed = difference, tolerance
    return "equal", "", worst, allowed


def load(folder: Path, name: str) -> Any:
    """An array of the package; never a pickle."""
    import numpy

    try:
        # Mapped: a header that promises more than the file holds is refused before memory is taken for it.
        mapped = numpy.load(str(folder / name), mmap_mode="r", allow_pickle=False)
        # Entries of no bytes: a file of a hundred bytes may hold a million million of them.
        array = numpy.array(mapped) if mapped.dtype.itemsize else mapped
    except (OSError, ValueError, EOFError, MemoryError, OverflowError) as error:
        raise checksums.Refused(f"{name} cannot be read ({error}). Make the package again.") from error
    if array.dtype.kind not in "fiub":
        raise checksums.Refused(f"{name} holds {array.dtype}, needed are numbers. Make the package again.")
    return array


def timed(folder: Path, samples: list[dict[str, Any]], session: Any, batch: int, rounds: int) -> list[float]:
    """Seconds of one call on a batch of the samples, sorted, one figure a round."""
    import numpy

    arrays = [[load(folder, name) for name in sample["inputs"]] for sample in samples]
    inputs = [numpy.concatenate([arrays[i % len(arrays)][k] for i in range(batch)]) for k in range(len(arrays[0]))]
    with inference.bounded(session) as call:
        for _ in range(3):
            call(inputs)
    call = inference.function(session)
    start, repeats = time.perf_counter(), 0
    while time.perf_counter() - start < SAMPLE_S or not repeats:
        call(inputs)
        repeats += 1
    found: machine.Rounds[float] = machine.Rounds(rounds, BUDGET_S, LEAST_ROUNDS)
    waited = machine.Waits()
    while found.lacking:
        before, start = waited(), time.perf_counter()
        for _ in range(repeats):
            call(inputs)
        lasted = time.perf_counter() - start
        found.add(lasted / repeats, waited() - before <= machine.MOST_WAITED * lasted)
    return sorted(found.told(waited.stolen)[1])


def lines(found: Verified) -> Iterator[str]:
    """What a person reads."""
    for problem in found.problems:
        yield f"wrong: {problem}"
    if not found.problems:
        signed = "" if found.signer is None else f", signed by {found.signer}"
        yield f"whole: every file matches its checksum{signed}"
    for model in found.models:
        told = f"{model.path}: {model.status}" + (f", {model.detail}" if model.detail else "")
        if model.worst_abs is not None and model.status == "equal":
            told += f", worst difference {model.worst_abs:.2g}, allowed {model.tolerance:.2g}"
        if model.p50_ms is not None:
            told += f"; p50 {model.p50_ms:.3f} ms, p90 {model.p90_ms:.3f} ms at batch {model.batch}"
        yield told
    if found.expected and any(model.p50_ms is not None for model in found.models):
        yield "expected: p50 {p50_ms:.3f} ms at batch {batch} in {runtime} on {device}".format(**found.expected)
    yield f"digest: {found.digest}"
    if found.exit_code == 4:
        yield "Nothing in this package could be run here; only its files were checked."
    yield "Passed." if found.passed else "Failed."


def main(arguments: list[str] | None = None) -> int:
    """The script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    here = Path(__file__).resolve().parent
    parser.add_argument("package", nargs="?", type=Path, default=here, help="package.tar.gz or an unpacked package; this folder")
    parser.add_argument("--hashes-only", action="store_true", help="run nothing")
    parser.add_argument("--rounds", type=int, default=50, help="rounds of timing; 0 for none")
    parser.add_argument("--threads", type=int, default=0, help="threads of the runtime; 0 leaves that to it")
    parser.add_argument("--allowed-signers", type=Path, help="a file that names who may have signed, as ssh-keygen -Y reads it")
    parser.add_argument("--identity", help="the one of them that must have signed")
    parser.add_argument("--digest", help="the digest that the package must have")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    try:
        signing = given.allowed_signers, given.identity, given.digest
        found = verify(given.package, not given.hashes_only, given.rounds, given.threads, *signing)
    except checksums.Refused as error:
        if given.json:
            print(json.dumps({"error": {"kind": error.kind, "message": str(error), "exit_code": error.exit_code}}))
        print(checksums.plain(f"Error: {error}"), file=sys.stderr)
        return error.exit_code
    print(json.dumps(dataclasses.asdict(found), indent=1) if given.json else "\n".join(map(checksums.plain, lines(found))))
    return found.exit_code


if __name__ == "__main__":
    sys.exit(main())
