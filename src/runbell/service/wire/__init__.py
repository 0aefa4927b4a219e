"""How the API looks on the wire: what a request may say, and what an answer says.

`decode` turns a body into one of the types of `requests`, `pages` does the same for a query;
`refusals` holds the sentences for what is wrong with them; `objects` are the answers. Nothing
here reads or writes anything.
"""
