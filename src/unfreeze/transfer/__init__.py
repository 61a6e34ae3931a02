"""Fine-tuning: a new head, layer freezing, the feature cache, training and the best checkpoint."""
