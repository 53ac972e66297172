"""A search over recipes: every trial is an ordinary run, and those that no other one beats are the result."""
