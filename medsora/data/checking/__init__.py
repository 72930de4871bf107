"""What a folder holds: decoding every file once, finding damage, borders and burnt-in text."""
