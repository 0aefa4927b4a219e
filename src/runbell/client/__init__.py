"""Who waits: the flow of a wait, its drivers, tools, journal and providers.

Read `flow.py` first: it is one wait, as a story. `fleet.py` plays many of them on one budget;
`threads.py`, `tasks.py` and `simulation.py` do what it asks for (`mail.py`).
"""
