"""From an identity to its Navidrome account: who may have which, and that it is what it should be."""
