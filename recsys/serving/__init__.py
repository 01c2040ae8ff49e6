"""A trained model outside of training: bundle on disk, scorer in process, MLflow registry."""
