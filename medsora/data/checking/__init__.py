"""Check of a folder: decode every file once, find damage, borders and burnt-in text."""
