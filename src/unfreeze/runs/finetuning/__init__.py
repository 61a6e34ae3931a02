"""A fine-tuning run: labelled data, network, plan, training, what is written."""
