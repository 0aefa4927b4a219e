"""How a run lives: the table, its events, and the operations that move it, in every order."""
