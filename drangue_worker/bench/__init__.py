"""The measurement behind `scripts/bench`: the product beside a bare Celery chain, on the same servers, in turn.

What is compared is a ratio: absolute figures say more about a machine than about the code.
"""
