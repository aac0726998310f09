"""What is looked at again and again, off the hot path: host names, and Navidrome itself."""
