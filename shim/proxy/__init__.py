"""The data plane: bytes between the edge and Navidrome."""
