"""Collected only where `make test-upstream` says which server there is."""

import os

LITELLM = "RUNBELL_TEST_LITELLM"
"""The `litellm` program, in an environment of its own."""

collect_ignore = [] if os.environ.get(LITELLM) else ["test_litellm.py"]
