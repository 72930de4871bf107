"""From clips to features on disk."""
