"""Tests of the packages and of the image, run by `make packaging`."""
