"""Real models: chat completions of any OpenAI-compatible server.

backend      the backend of one server: its models, its slots, when a call is tried again
prompt       what the model is told          size    how large that is
request      in which words it is asked      connection, sse, limits    the way there and back
chunks, answer, calls, text                  what comes back, made sense of
failures     what it means when it fails
"""

from runbell.service.backends.upstream.backend import Upstream

__all__ = ["Upstream"]
