"""Freed memory is kept while stages work, and not where models are timed."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import textwrap

import pytest

from compress.measure import heap, latency

GLIBC = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallopt")
LARGE = 48 << 20  # bytes: above what glibc keeps by itself
COUNT = f"""
    import resource
    from compress.measure import heap
    import numpy as np

    def pages() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            np.empty({LARGE}, np.uint8)[:] = 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def huge() -> int:
        with heap.kept():
            pages()
            kept = pages()
            with heap.as_usual():
                usual = pages()
            pages()
            again = pages()
        return kept, usual, again, pages()

    print(*huge())
"""


def _counted(**environment: str) -> list[int]:
    # NumPy asks for huge pages by itself, of which there are few to count.
    told = os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"} | environment
    code = textwrap.dedent(COUNT)
    done = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True, timeout=120)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(not GLIBC, reason="another C library than glibc")
def test_memory_is_touched_once_in_a_block_that_keeps_it_and_as_usual_where_something_is_timed() -> None:
    kept, usual, again, after = _counted()
    every = 10 * LARGE // resource.getpagesize()
    assert kept < every / 10
    assert usual > every / 2
    assert again < every / 10
    assert after > every / 2


@pytest.mark.skipif(not GLIBC, reason="another C library than glibc")
def test_who_has_told_the_c_library_what_to_do_is_obeyed() -> None:
    kept, *_ = _counted(MALLOC_CHECK_="0")
    assert kept > 10 * LARGE // resource.getpagesize() / 2


def test_models_are_timed_as_in_any_other_process() -> None:
    settings: list[bool] = []
    with heap.kept():
        latency.compare({"one": lambda: settings.append(heap._blocks[-1])}, "one", rounds=5, min_sample_ms=0.1)  # pyright: ignore[reportPrivateUsage]
    assert settings and not any(settings)
