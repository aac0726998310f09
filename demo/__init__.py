"""What a person tries the shim against when there is no Navidrome and no edge at hand.

A stand-in Navidrome (`demo.navidrome`) and a scripted edge. Nothing that `serve` runs is
imported from here: the demo stands beside the runtime, and may import it, never the other way.
"""
