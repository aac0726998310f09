"""The SQL store: its tables, their migrations, and transactions outside the event loop.

`provisioning` and `audit` interpret their own rows.
"""
