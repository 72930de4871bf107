"""How few sampling steps give the same videos."""
