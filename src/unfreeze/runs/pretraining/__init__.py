"""A pretraining run: data, network, recipe, training, what is written."""
