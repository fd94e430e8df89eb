"""The version of this package: that of the server with which it was released."""

__version__ = "0.1.0"
