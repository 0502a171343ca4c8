"""One file a way of tuning."""
