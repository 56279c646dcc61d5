"""What runs on the far side: sent to workers by value, so they need not have nbmap."""
