"""What a run's directory holds, by name."""

RUN_NAME = "run.json"
"""What the run is."""
CHECKPOINTS_NAME = "checkpoints"
IMPORTED_NAME = "imported.json"
"""Of a run that begins from a model that was made elsewhere."""
