"""A trained model applied to pictures: load_run, Predictor, the command `python -m fovea_detr.predict`."""
