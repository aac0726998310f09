"""The stored audit trail: an SQL database of its own, with two chained streams and their counts."""
