"""SwAV pretraining and transfer learning on your own pictures."""

__version__ = "0.1.0"
