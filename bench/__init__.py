"""Measurements of the served process: `python -m bench` prints one JSON document.

`load` is the client, a process of its own; `server` starts the service and reads its CPU and
memory; each other module measures one question and answers with `Figure`s.
"""
