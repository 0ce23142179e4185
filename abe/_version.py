"""The version, kept in one place: the build, `abe.__version__` and the documentation read it here."""

__version__ = "0.1.0"
