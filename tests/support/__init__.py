"""What several tests share: models, writers of checkpoints, runs that are killed. Not tests themselves."""
