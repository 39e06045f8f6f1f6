"""Tools: what an agent can do, described for the model and run with care."""
