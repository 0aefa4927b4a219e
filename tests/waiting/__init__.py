"""Waiting at the server: held answers, conditional ones, many runs at once, and the live feed."""
