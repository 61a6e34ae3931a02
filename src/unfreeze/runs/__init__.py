"""What commands share: one pretraining or fine-tuning run, from settings to a written model."""
