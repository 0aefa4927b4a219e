"""Requests that are to happen once."""
