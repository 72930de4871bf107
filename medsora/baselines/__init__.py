"""Other systems' models, in our own code, that train and sample by MedSora's commands."""
