"""What the server tells about itself: the metrics page."""
