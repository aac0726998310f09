"""The control plane: health, readiness, metrics, and who may ask for them."""
