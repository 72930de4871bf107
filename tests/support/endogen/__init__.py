"""Helpers of EndoGen's tests."""
