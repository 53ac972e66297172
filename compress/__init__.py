"""Make trained neural networks small, fast and deployable, and prove it."""

__version__ = "0.1.0"
