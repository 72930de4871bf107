"""From a folder of videos to a project (`new`), and from a run to a model folder (`export`)."""
