"""The migrations of an inbox, forward only; a released one is never edited."""
