"""Device passwords: a revocable password for one Subsonic app."""
