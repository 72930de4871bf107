"""Train EndoGen: the autoregressive transformer over a clip's codes."""
