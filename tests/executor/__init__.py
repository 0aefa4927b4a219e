"""The executor and its models, in virtual time."""
