"""The commands: each module parses, calls the library and prints; nothing is computed here."""
