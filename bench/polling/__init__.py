"""How well do polling policies poll: calls against delay, beside the exact optimum."""
