"""The SQL store: its tables, how they are brought up to date, and transactions off the event loop.

What the rows mean is known by those who keep them: bindings by `provisioning`, the trail by `audit`.
"""
