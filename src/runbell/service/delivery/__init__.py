"""Who brings webhooks to their receivers.

dialling   one POST: where it may go, how long it may take, and what came of it
lookups    names and their addresses: nobody waits for somebody else's
lanes      what an endpoint gets: its order, its pace, so many at a time
recording  what came of attempts, stored
"""
