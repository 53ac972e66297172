"""What stands in a package, and how its bytes are made: the same for the same content, on every machine."""
