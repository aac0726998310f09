"""Accounts from end to end: the gate over a Navidrome, the stand-in or a real one."""
