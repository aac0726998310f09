"""Accounts end to end: the gate with a Navidrome, the stand-in or a real one."""
