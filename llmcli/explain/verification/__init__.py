"""Verification: is this model run correctly here? Each proof compares two ways to the same numbers."""
