"""Statistics in, decisions out: tensors only, no graph and no files."""
