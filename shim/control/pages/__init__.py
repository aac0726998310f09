"""The pages of the console: HTML made by the server, which works without scripts."""
