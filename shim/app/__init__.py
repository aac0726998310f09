"""The composition root: builds the components from the settings, starts and stops them."""
