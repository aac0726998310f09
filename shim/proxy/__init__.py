"""The data plane: forwards requests and responses between the edge proxy and Navidrome."""
