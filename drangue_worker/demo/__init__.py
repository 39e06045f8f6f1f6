"""The demo: an on-call agent, a scripted provider for those without a key, and the story played on a real fleet."""
