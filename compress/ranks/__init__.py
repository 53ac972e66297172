"""Several processes that work on one run: what each of them looks at, and how what they found is put together."""

from compress.ranks.ranks import ALONE, Ranks, Share

__all__ = ["ALONE", "Ranks", "Share"]
