"""The version, where all who write it down read it."""

__version__ = "0.1.0"
