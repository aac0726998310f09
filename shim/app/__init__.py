"""The composition root: builds the parts from the settings, starts and stops them."""
