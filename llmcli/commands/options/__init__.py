"""Bundles of options that several commands share, and the values that they build."""
