"""Provisioning: creates, links, updates and locks the Navidrome account of each identity."""
