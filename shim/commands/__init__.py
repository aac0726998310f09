"""The commands, one file each; `shim.cli` puts them on the command line."""
