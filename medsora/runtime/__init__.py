"""What every command is built on: processes, interruption, exit status, files."""
