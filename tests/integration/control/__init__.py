"""The proofs over real sockets: the shim as a process, a provider that rotates its keys, and attackers."""
