"""Channels of a traced model: which belong together, and how to take them out."""
