"""A run's configuration: every key (`schema`), its checks, and how a YAML file becomes it (`load`)."""
