"""What lies around a run and fails: the server of its files, its disk, the other machine."""
