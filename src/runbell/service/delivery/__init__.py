"""Who brings webhooks to their receivers.

dialling  one POST: where it may go, how long it may take, and what came of it
"""
