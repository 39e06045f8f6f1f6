"""The Celery shell: a pool, a loop, a few short tasks, and the sweeper in every worker."""
