"""What a run's folder shows: curves, galleries and the HTML page, drawn from files alone."""
