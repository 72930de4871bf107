"""How long tests wait for what surely comes: long enough for any machine, and a hang still ends."""

PATIENCE_S = 3600
