"""Against servers that others wrote: `make test-upstream` starts them, `make test` does not."""
