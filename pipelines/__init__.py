"""The pipeline: from preferences to a promoted model. What runs inside a stage; nothing here imports Prefect."""
