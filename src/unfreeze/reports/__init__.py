"""Reports made from a run's files: curves, galleries, HTML pages and terminal summaries."""
