"""Which stages run, in which order, and what is stale."""
