"""Runbell: know the moment an asynchronous run finishes."""

__version__ = "0.1.0"
