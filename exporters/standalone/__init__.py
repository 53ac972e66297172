"""Scripts that go to a device: Python 3.8 or newer, the standard library and one runtime; nothing else of this project."""
