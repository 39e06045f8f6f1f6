"""What tests of the whole system share: agents to serve, a fleet to break, effects to count."""
