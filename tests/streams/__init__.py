"""Streams of a run: what is told, in which order, to whom, and what it costs."""
