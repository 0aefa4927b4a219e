"""Every version of the stock SDK that matters, against one service: `make test-sdks`."""
