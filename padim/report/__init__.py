"""What people look at: overlays and panels of anomaly maps."""
