"""Studies: commands that train several models and compare them."""
