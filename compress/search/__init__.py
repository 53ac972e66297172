"""A search for how many channels every group keeps: an environment that any agent can act in, and an agent."""
