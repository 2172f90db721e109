"""The rim: MLflow (tracking, spool, recorder) and Ray (cluster); the only place that imports either, and only when used."""
