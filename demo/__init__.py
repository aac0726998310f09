"""A demo and test environment for the shim that needs no Navidrome and no edge.

A stand-in Navidrome (`demo.navidrome`) and a scripted edge. The runtime imports nothing from here;
the demo may import the runtime.
"""
