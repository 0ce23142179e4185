"""The version, kept in one place: the build and `abe.__version__` read it here."""

__version__ = "0.1.0"
