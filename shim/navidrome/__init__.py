"""Navidrome's API: what it can be asked, what it answers, and how it fails. Nothing is decided here."""
