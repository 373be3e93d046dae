"""The one place the version is written; the build and both packages read it from here."""

__version__ = "0.2.0"
