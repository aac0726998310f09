"""Tests of the image, run by `make image`: they need root, buildah and mmdebstrap."""
