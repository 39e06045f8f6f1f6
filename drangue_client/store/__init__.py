"""The log of every run, on Postgres or SQLite, behind one port."""
