"""The engine: obeys the rules, one step at a time, under claims. Two shells drive it, Celery and one process."""
