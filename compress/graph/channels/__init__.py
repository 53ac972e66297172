"""Who is coupled with whom: `solve(module, inputs)`."""

from compress.graph.channels.solve import solve

__all__ = ["solve"]
