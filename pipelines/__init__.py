"""The jobs: from a YAML config to a prepared store, a trained model, a registered version and scores."""
