"""Records of a run, as a table, Markdown and JSON."""
