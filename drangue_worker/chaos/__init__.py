"""The soak: many runs of a mixed agent on a real fleet, while a monkey breaks processes and servers under it.

What must hold is worked out from a seeded plan before anything runs, and compared at the end with the log and with a
table that the runtime does not own.
"""
