"""The engine for jobs, in virtual time."""
