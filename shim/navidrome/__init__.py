"""A client for Navidrome's API. It makes no decisions."""
