"""A model becomes a graph of modules: `trace(model, inputs)`."""

from compress.graph.trace.trace import trace

__all__ = ["trace"]
