"""The dispatch engine: what a run is, and how its inputs reach whatever runs them."""
