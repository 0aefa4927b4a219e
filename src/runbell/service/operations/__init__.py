"""What can be done: one function for each thing that a request, a worker or the clock does.

Each is one transaction; none knows HTTP. They refuse with `RequestRefused`, in the sentences that
clients of the Assistants API know.
"""
