"""What comes from the person at the keyboard, or from somebody who sent them a file: their code by name, and text files."""
