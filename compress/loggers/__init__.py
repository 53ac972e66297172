"""Runs told to the experiment trackers of others; each is optional, and none can end a run."""
