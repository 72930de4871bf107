"""Results of an evaluation as files: JSON, tables, plots and warnings."""
