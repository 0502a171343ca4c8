"""Opening a model: folders, the hub, the embedded one; in 4 and 8 bits."""
