"""The control plane over real sockets, with a shim process and a stand-in."""
