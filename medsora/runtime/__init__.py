"""The ground under every command: processes, interruption, exit status, files."""
