"""Train EndoGen: the transformer that writes a clip's codes one after another."""
