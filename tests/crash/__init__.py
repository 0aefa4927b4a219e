"""Real processes that are killed, starved and locked out, and lose nothing."""
