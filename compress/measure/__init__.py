"""Cost, latency and quality of a model."""
