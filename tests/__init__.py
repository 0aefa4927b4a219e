"""The tests; `served.py` is the running service that many of them talk to."""
